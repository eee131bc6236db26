"""A console that fails does not end a run."""

import io
import os
import subprocess
import sys

import pytest

from hypernet.cli.console import LossyFile, SafeText, protect_console
from tests.helpers.scripts import REPO


def open_lossy(file, errors):
    return io.TextIOWrapper(io.BufferedWriter(LossyFile(file, errors.append)), line_buffering=True)


def test_output_to_a_closed_pipe_is_dropped_and_reported_once():
    reader, writer = os.pipe()
    errors = []
    stream = open_lossy(os.fdopen(writer, "wb", buffering=0), errors)
    print("first", file=stream)
    assert os.read(reader, 100) == b"first\n" and stream.fileno() == writer and not stream.isatty()
    os.close(reader)
    for _ in range(3):
        print("second", file=stream)
    stream.close()
    assert [type(error) for error in errors] == [BrokenPipeError]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has this device")
def test_output_resumes_after_a_full_disk(tmp_path):
    errors = []
    with open("/dev/full", "wb", buffering=0) as full, open(tmp_path / "log", "wb", buffering=0) as log:
        raw = LossyFile(full, errors.append)
        stream = io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=True)
        print("lost", file=stream)
        raw.raw = log
        print("kept", file=stream)
        raw.raw = full
        print("lost", file=stream)
    assert (tmp_path / "log").read_text() == "kept\n" and len(errors) == 2


CHILD = """
import os, sys
sys.path.insert(0, sys.argv[1])
from hypernet.cli.console import protect_console
protect_console()
with open(sys.argv[2], "w") as file:  # opened while the console is closed; must not get its number
    assert file.fileno() > 2
    print("out", flush=True), print("err", file=sys.stderr, flush=True)
    file.write("done")
"""


@pytest.mark.skipif(os.name != "posix", reason="shell syntax")
@pytest.mark.parametrize(
    "command",
    [
        "{} >&- 2>&-",
        "{} <&- >&- 2>&-",
        "{} > /dev/full 2> /dev/full",
        "(sleep 0.3; {} 2>&1) | true; exit ${{PIPESTATUS[0]}}",
    ],
)
def test_a_script_without_a_console_ends_well(tmp_path, command):
    script = command.format('"$0" -c "$1" "$2" "$3"')
    arguments = [sys.executable, CHILD, str(REPO), str(tmp_path / "file")]
    done = subprocess.run(["bash", "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == "done"


def test_keeps_the_streams_of_test_runners(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.StringIO())
    before = sys.stdout, sys.stderr
    protect_console()
    assert (sys.stdout, sys.stderr) == before


def test_escapes_control_characters(tmp_path):
    with open(tmp_path / "log", "wb") as file:
        stream = SafeText(file, encoding="utf-8", newline="")
        for text in ("a \x1b[31mred\x1b[0m\n", "\rbar 1/2", "\n\x1b[A", "title \x1b]0;x\x07 \u202ex\n", "caf\xe9\tb\n"):
            assert stream.write(text) == len(text)
        stream.flush()
    expected = "a \\x1b[31mred\\x1b[0m\n\rbar 1/2\n\x1b[Atitle \\x1b]0;x\\x07 \\u202ex\ncaf\xe9\tb\n"
    assert (tmp_path / "log").read_bytes().decode() == expected
