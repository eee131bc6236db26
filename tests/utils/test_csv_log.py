"""The CSV files of a run: appended to, cut back, and whole after a disk that was full."""

import csv
import resource

from hypernet.utils.csv_log import CsvLog


def test_rows_come_back_and_are_cut(tmp_path):
    table = CsvLog(tmp_path / "a.csv", ["step", "loss"])
    for step in (10, 20, 30):
        assert table.append([step, f"{1 / step:.7f}"]) is None
    with open(table.path, newline="") as file:
        assert list(csv.reader(file)) == [
            ["step", "loss"],
            ["10", "0.1000000"],
            ["20", "0.0500000"],
            ["30", "0.0333333"],
        ]
    with open(table.path, "a") as file:
        file.write("40")  # a row that a crash has torn
    assert [row["step"] for row in table.rows()] == ["10", "20", "30"]
    before = table.path.read_bytes()
    table.roll_back_to(30)
    assert table.path.read_bytes() == before.removesuffix(b"40")
    table.roll_back_to(10)
    assert [row["step"] for row in table.rows()] == ["10"]
    table.roll_back_to(5)
    assert not table.path.exists()


def test_a_full_disk_leaves_no_half_row_and_no_file_without_a_header(tmp_path):
    table, (limit, most) = CsvLog(tmp_path / "a.csv", ["step", "loss"]), resource.getrlimit(resource.RLIMIT_FSIZE)
    for size, step in ((6, 1), (26, 2)):  # within the header; within the second row
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
            assert "a.csv cannot be written to" in table.append([step, "0.5000000"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        table.rows()
        assert table.append([step + 10, "0.4000000"]) is None
    assert [row["step"] for row in table.rows()] == ["1", "11", "2", "12"]
    assert table.path.read_text().splitlines()[0] == "step,loss"


def test_what_could_not_be_written_is_written_later(tmp_path):
    table = CsvLog(tmp_path / "folder" / "a.csv", ["step", "loss"])
    assert "a.csv cannot be written to (No such file or directory)" in table.append([1, 0.5])
    assert table.append([2, 0.4]) is None  # it has been said
    (tmp_path / "folder").mkdir()
    assert table.append([3, 0.3]) is None
    assert [row["step"] for row in table.rows()] == ["1", "2", "3"]
