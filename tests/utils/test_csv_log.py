"""The CSV files of a run: appended to, rolled back, and complete after a full disk."""

import csv
import resource

from hypernet.utils.csv_log import CsvLog


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
    log.roll_back_to(30)
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
    assert "a.csv" in log.append([1, 0.5])
    assert log.append([2, 0.4]) is None
    (tmp_path / "folder").mkdir()
    assert log.append([3, 0.3]) is None
    assert [row["step"] for row in log.rows()] == ["1", "2", "3"]
