"""`pip install .`: the package alone, with its templates and dependencies, usable from any folder."""

import email
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

import hypernet
from tests.helpers.scripts import REPO

USE = """
import sys, hypernet
assert not {"torch", "diffusers", "transformers"} & set(sys.modules)
assert set(hypernet.__all__) <= set(dir(hypernet))
from hypernet.data.prompts import shipped_templates
print(hypernet.__version__, *shipped_templates())
print(hypernet.UserError("one line"))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel built from a checkout that also holds a run's output."""
    folder = tmp_path_factory.mktemp("package")
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(REPO / name, checkout)
    for name in ("hypernet", "tests"):
        shutil.copytree(REPO / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("output", "wandb", "examples"):
        (checkout / name).mkdir()
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, checkout]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        requires = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist")
    assert {name.partition("/")[0] for name in names} == {"hypernet", metadata.partition("/")[0]}
    source = {str(path.relative_to(REPO)) for path in (REPO / "hypernet").rglob("*") if path.is_file()}
    assert {name for name in source if "__pycache__" not in name} == {n for n in names if n.startswith("hypernet/")}
    assert [line.replace(" ", "") for line in requires] == (REPO / "requirements.txt").read_text().split()


def test_installed_package_works_from_any_folder(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = done.stdout.splitlines()
    assert first.split()[0] == hypernet.__version__ and "style_filewords" in first and second == "one line"
