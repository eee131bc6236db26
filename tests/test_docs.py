"""The pages: their links lead somewhere, their commands name files that exist, the API page is complete."""

import re

import pytest

import hypernet
from tests.helpers.scripts import REPO

PAGES = [REPO / "README.md", *(REPO / "examples").rglob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]
    local = [link.partition("#")[0] for link in links if not link.startswith(("http", "#"))]
    assert not [link for link in local if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_paths_of_the_repository_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = set(re.findall(r"(?<![\w/.])((?:examples|hypernet|tests)/[\w/.-]+\.\w+)", text))
    assert not [path for path in paths if not (REPO / path).exists()]


def test_api_page_documents_every_public_name():
    """`python examples/docs/make_api.py` writes it."""
    text = (REPO / "examples" / "docs" / "api.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (\w+)$", text, re.M) and set(re.findall(r"^### (\w+)$", text, re.M)) == set(
        hypernet.__all__
    )
    for name in hypernet.__all__:
        assert getattr(hypernet, name).__doc__.strip().splitlines()[0] in text


def test_folder_listing_of_the_readme_is_complete():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    for path in (REPO / "hypernet").iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert re.search(rf"^  {path.name}/ ", text, re.M), path.name


def test_the_lowest_versions_agree():
    """requirements.txt, the pins that its lower bounds are tested with, and the table of what was tried."""
    bounds = dict(line.split(">=") for line in (REPO / "requirements.txt").read_text().split())
    pins = dict(line.split("==") for line in (REPO / "tests" / "lowest.txt").read_text().split())
    table = (REPO / "examples" / "docs" / "versions.md").read_text(encoding="utf-8")
    assert {name: f"{bound}.0" for name, bound in bounds.items()} == pins
    assert all(re.search(rf"^\| {name} \| {re.escape(pin)} \|", table, re.M) for name, pin in pins.items())
