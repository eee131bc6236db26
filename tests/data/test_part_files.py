"""Files of a shared cache: which temporary files are removed, and when."""

import os
import signal
import time

import pytest

from hypernet.data import part_files
from hypernet.data.part_files import UNTOUCHED, new_part_files, remove_abandoned
from hypernet.utils.atomic_files import atomic_write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def age(path, seconds):
    """Set when a file was last written."""
    os.utime(path, (time.time() - seconds,) * 2)


def test_files_in_use_are_kept(tmp_path):
    folder = tmp_path / "latents"
    with new_part_files(folder) as paths:
        first, second = next(paths), next(paths)
        with atomic_write(first) as temporary:
            temporary.write_text("a part")
            for _ in range(2):
                remove_abandoned(tmp_path)
                assert temporary.exists()
                age(temporary, 2 * UNTOUCHED)  # as if the process had been suspended
        assert first.exists() and first != second
    assert names(folder) == [first.name]


def test_files_of_killed_runs_are_removed(tmp_path, monkeypatch):
    folder = tmp_path / "latents"
    folder.mkdir()
    ours, other = f"{part_files._machine()}-{'a' * 32}", f"00000000-{'b' * 32}"
    left = [folder / f".{ours}-3.arrow.tmp", folder / f".{ours}.lock"]
    far = [folder / f".{other}-0.arrow.tmp", folder / f".{other}.lock"]
    before = [folder / f".{'c' * 32}.arrow.tmp"]  # of an earlier version
    kept = [folder / "part.arrow", folder / "other.txt"]
    for path in (*left, *far, *before, *kept):
        path.write_bytes(b"")
    remove_abandoned(tmp_path)
    assert set(folder.iterdir()) == {*far, *before, *kept}
    for path in (*far, *before):
        age(path, UNTOUCHED - 60)
    remove_abandoned(tmp_path)
    assert set(folder.iterdir()) == {*far, *before, *kept}
    for path in (*far, *before):
        age(path, UNTOUCHED + 60)
    remove_abandoned(tmp_path)
    assert set(folder.iterdir()) == set(kept)


def test_without_locks_only_old_files_are_removed(tmp_path, monkeypatch):
    class NoLock(part_files.FileLock):
        def _acquire(self):
            raise OSError(38, "Function not implemented")

    monkeypatch.setattr(part_files, "FileLock", NoLock)
    with new_part_files(tmp_path / "latents") as paths, atomic_write(next(paths)) as temporary:
        temporary.write_text("a part")
        (tmp_path / "latents" / f"{temporary.name[:42]}.lock").write_text("")
        remove_abandoned(tmp_path)
        assert temporary.exists()
        age(temporary, UNTOUCHED + 60)
        remove_abandoned(tmp_path)
        assert not temporary.exists()
        temporary.write_text("a part")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_leaves_nothing_behind(tmp_path, name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    signal.signal(number, signal.SIG_DFL)
    try:
        with (
            pytest.raises(SystemExit) as end,
            new_part_files(tmp_path) as paths,
            atomic_write(next(paths)) as temporary,
        ):
            temporary.write_text("half")
            os.kill(os.getpid(), number)
            time.sleep(5)
        assert end.value.code == 128 + number and names(tmp_path) == []
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
