"""The CSV files of a run: appended to, rolled back, and complete whatever the disk and other programs do to them."""

import csv
import io
import os
import resource

import pytest

from hypernet.utils import csv_log
from hypernet.utils.csv_log import CsvLog

COLUMNS = ["step", "loss", "rate"]


def fill(path, steps=3):
    """Return a log with rows 10, 20, ... and the bytes of its file."""
    log = CsvLog(path, COLUMNS)
    for step in range(1, steps + 1):
        assert log.append([10 * step, f"{1 / step:.7f}", "5e-05"]) is None
    return log, path.read_bytes()


def test_rows_are_read_back_and_rolled_back(tmp_path):
    log = CsvLog(tmp_path / "a.csv", ["step", "loss"])
    for step in (10, 20, 30):
        assert log.append([step, f"{1 / step:.7f}"]) is None
    with open(log.path, newline="") as file:
        assert list(csv.reader(file)) == [
            ["step", "loss"],
            ["10", "0.1000000"],
            ["20", "0.0500000"],
            ["30", "0.0333333"],
        ]
    with open(log.path, "a") as file:
        file.write("40")  # a row cut short by a crash
    assert [row["step"] for row in log.rows()] == ["10", "20", "30"]
    before = log.path.read_bytes()
    assert log.roll_back_to(30) is None
    assert log.path.read_bytes() == before.removesuffix(b"40")
    log.roll_back_to(10)
    assert [row["step"] for row in log.rows()] == ["10"]
    log.roll_back_to(5)
    assert not log.path.exists()


def test_full_disk_leaves_no_partial_row_and_no_file_without_a_header(tmp_path):
    log, (limit, maximum) = CsvLog(tmp_path / "a.csv", ["step", "loss"]), resource.getrlimit(resource.RLIMIT_FSIZE)
    for size, step in ((6, 1), (26, 2)):  # within the header; within the second row
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, maximum))
            assert "a.csv" in log.append([step, "0.5000000"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, maximum))
        log.rows()
        assert log.append([step + 10, "0.4000000"]) is None
    assert [row["step"] for row in log.rows()] == ["1", "11", "2", "12"]
    assert log.path.read_text().splitlines()[0] == "step,loss"


def test_failed_rows_are_written_later_and_reported_once(tmp_path):
    log = CsvLog(tmp_path / "folder" / "a.csv", ["step", "loss"])
    assert str(log.path) in log.append([1, 0.5])
    assert log.append([2, 0.4]) is None
    assert [row["step"] for row in log.rows()] == ["1", "2"] and not log.path.parent.exists()
    (tmp_path / "folder").mkdir()
    assert log.append([3, 0.3]) is None
    assert [row["step"] for row in log.rows()] == ["1", "2", "3"] and log.state_dict() == {}
    log.path.unlink()
    log.path.mkdir()
    assert str(log.path) in log.append([4, 0.2])  # a second series of failures
    assert log.finish() is not None


def test_a_locked_file_is_brought_up_to_date_by_a_later_process(tmp_path):
    """The checkpoint holds what it lacks: the rows, and which abandoned ones to delete."""
    fill(tmp_path / "a.csv", 4)
    (tmp_path / "a.csv").rename(tmp_path / "content")
    (tmp_path / "a.csv").mkdir()  # it can be neither read nor replaced
    first = CsvLog(tmp_path / "a.csv", COLUMNS)
    message = first.roll_back_to(20)
    assert str(tmp_path / "a.csv") in message and ".tmp" not in message
    first.flush()
    for step in (30, 40):
        assert first.append([step, "0.5", "5e-05"]) is None
    state = first.state_dict()
    assert str(tmp_path / "a.csv") in first.finish()

    (tmp_path / "a.csv").rmdir()
    (tmp_path / "content").rename(tmp_path / "a.csv")
    second = CsvLog(tmp_path / "a.csv", [])
    second.load_state_dict(state)
    assert second.roll_back_to(30) is None and second.state_dict() == {} and second.finish() is None
    rows = list(csv.DictReader((tmp_path / "a.csv").open(newline="")))
    assert [(row["step"], row["loss"]) for row in rows] == [("10", "1.0000000"), ("20", "0.5000000"), ("30", "0.5")]


def test_rows_of_a_checkpoint_that_the_file_has_by_now_are_not_repeated(tmp_path):
    """Each resume from the same checkpoint restores the same rows."""
    (tmp_path / "a.csv").mkdir()
    first = CsvLog(tmp_path / "a.csv", ["step", "event"])
    for row in ([10, "diverged"], [10, "rolled back"], [20, "rolled back"]):
        first.append(row)
    state = first.state_dict()
    (tmp_path / "a.csv").rmdir()
    first.append([30, "rolled back"])  # after the checkpoint
    for step, rows in ((20, 3), (20, 3), (10, 2)):
        again = CsvLog(tmp_path / "a.csv", ["step", "event"])
        again.load_state_dict(state)
        assert again.roll_back_to(step) is None and len(again.rows()) == rows
        content = list(csv.DictReader((tmp_path / "a.csv").open(newline="")))
        assert [row["event"] for row in content] == ["diverged", "rolled back", "rolled back"][:rows]


def test_a_rollback_that_changes_nothing_writes_nothing(tmp_path):
    log, content = fill(tmp_path / "a.csv")
    os.utime(log.path, (1, 1))
    assert CsvLog(log.path, COLUMNS).roll_back_to(30) is None
    assert log.path.stat().st_mtime == 1 and log.path.read_bytes() == content


def as_spreadsheet(content: bytes, delimiter: str, encoding: str) -> bytes:
    """Return a table as a spreadsheet saves it: decimal commas, unless commas separate the cells."""
    rows = [line.split(",") for line in content.decode().splitlines()]
    if delimiter != ",":
        rows = [[cell.replace(".", ",") for cell in row] for row in rows]
    return "".join(delimiter.join(row) + "\n" for row in rows).encode(encoding)


@pytest.mark.parametrize(
    "delimiter, encoding", [(",", "utf-8-sig"), (";", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-16"), (",", "utf-8")]
)
def test_a_file_that_a_spreadsheet_has_saved_is_continued(tmp_path, delimiter, encoding):
    log, content = fill(tmp_path / "a.csv")
    expected = log.rows()
    for process in (CsvLog(log.path, COLUMNS), log):  # after a resume; in the middle of a run
        log.path.write_bytes(as_spreadsheet(content, delimiter, encoding))
        assert process.rows() == expected
        assert process.append([40, "0.2500000", "5e-05"]) is None
        assert log.path.read_bytes() == content + b"40,0.2500000,5e-05\r\n"
    assert os.listdir(tmp_path) == ["a.csv"]


def test_a_column_of_remarks_may_be_added(tmp_path):
    log, _ = fill(tmp_path / "a.csv")
    header, *rows = log.path.read_text().splitlines()
    remarks = ["so so", "", "schön, fast"]
    lines = [f"{header},Bemerkung", *(f'{row},"{remark}"' for row, remark in zip(rows, remarks))]
    log.path.write_bytes("\n".join([*lines, ""]).encode("cp1252"))
    assert CsvLog(log.path, COLUMNS).append([40, "0.5", "5e-05"]) is None
    kept = list(csv.DictReader(log.path.open(newline="")))
    assert [row["step"] for row in kept] == ["10", "20", "30", "40"] and kept[0]["Bemerkung"] == "so so"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv"]


def test_quoted_text_survives_a_spreadsheet(tmp_path):
    log = CsvLog(tmp_path / "guard.csv", ["step", "event", "factor"])
    log.append([5, "val_loss 0,5 is worse; it goes back, at 0.1 times", "0.1"])
    expected, content = log.rows(), log.path.read_bytes()
    log.path.write_text('\ufeffstep;event;factor\n5;"val_loss 0,5 is worse; it goes back, at 0.1 times";0,1\n')
    assert log.rows() == expected
    log.roll_back_to(9)
    assert log.path.read_bytes() == content


@pytest.mark.parametrize(
    "damage, kept",
    [
        (lambda content: content.partition(b"\n")[2], []),  # the header is lost
        (lambda content: content.replace(b"step", b"Schritt"), []),
        (lambda content: content.replace(b"0.5000000", b"0.5\xff00"), ["10", "30"]),
        (lambda content: content.replace(b"0.5000000", b"7" * 200_000 + b"x"), ["10", "30"]),
        (lambda content: content.replace(b"0.5000000", b"0.5\0"), ["10", "30"]),
        (lambda content: content.replace(b"0.5000000", b'"0.5'), ["10", "30"]),
        (lambda content: content.replace(b"20,", b"a note,"), ["10", "30"]),
        (lambda content: content.replace(b"0.5000000,5e-05", b"0.5000000"), ["10", "30"]),
        (lambda content: bytes(range(256)) * 50, []),
        (lambda content: b"{}\n", []),
    ],
)
def test_a_damaged_file_is_set_aside_and_its_readable_rows_continue(tmp_path, damage, kept):
    log, content = fill(tmp_path / "a.csv")
    damaged = damage(content)
    log.path.write_bytes(damaged)
    after = CsvLog(log.path, COLUMNS)
    assert [row["step"] for row in after.rows()] == kept
    message = after.roll_back_to(30)
    assert "a.csv" in message and "a-damaged.csv" in message and "\n" not in message
    assert (tmp_path / "a-damaged.csv").read_bytes() == damaged
    assert after.append([40, "0.2500000", "5e-05"]) is None
    assert [row["step"] for row in after.rows()] == [*kept, "40"]
    log.path.write_bytes(damaged)
    assert "a-damaged-2.csv" in CsvLog(log.path, COLUMNS).append([50, 1, 1])  # never the same name twice


@pytest.mark.parametrize("known", [[], ["step", "loss", "event"]])
def test_plain_tables_are_read_at_once_and_alike(known):
    columns, number = ["step", "loss", "event", "mine"], "0.25"
    plain = [
        [str(step), cell, text, ""] for step, cell in enumerate((number, "", "nan", "-1e-3")) for text in ("", "a, b")
    ]
    odd = [
        ["7", number, "a", "x"],
        ["7", "0,5", "a", "1"],
        ["x", number, "a", "1"],
        ["7", number, "a"],
        ["7", "x", "", "1"],
    ]
    odd += [
        ["7", number, "\0", "1"],
        ["7", number, "\ufffd", "1"],
        ["7", number, "a", "1,5"],
        ["7", number, "a", "1", "2"],
    ]
    for rows in (plain, *([*plain, row] for row in odd)):
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows(rows)
        lines = file.getvalue().splitlines()
        found = csv_log._parse_plain(lines, columns, known)
        assert found is not None or rows is not plain
        assert found is None or found == [csv_log._parse_row(line, columns, ",", known) for line in lines]


def test_columns_may_come_and_go(tmp_path):
    log, _ = fill(tmp_path / "a.csv")
    log.columns = ["step", "loss", "scale", "rate"]
    log.append([40, 0.25, 512, "5e-05"])
    log.columns = ["step", "loss"]
    log.append([50, 0.2])
    rows = log.rows()
    assert [row["scale"] for row in rows] == ["", "", "", "512", ""]
    assert [row["rate"] for row in rows] == ["5e-05"] * 4 + [""] and rows[4]["loss"] == "0.2"
    assert CsvLog(log.path, []).roll_back_to(50) is None and log.rows() == rows
