"""Folders that several modules read."""

import pytest

from tests.helpers.preparation import write


@pytest.fixture(scope="session")
def one_image(tmp_path_factory):
    """A folder with one image."""
    return write(tmp_path_factory.mktemp("one") / "in", {"a.png": (40, 40)})
