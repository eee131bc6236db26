"""Other trainers' options: the tables of docs/from_webui.md as they are read, and short forms."""

from hypernet.cli import option_aliases
from hypernet.cli.option_aliases import PAGE, SHORT_FORMS, find_aliases, read_tables
from hypernet.cli.training_options import build_parser


def test_a_table_is_read_by_its_columns():
    row = "| `clip_grad`; Gradient *.clip, N steps | `--max_grad_norm 1`, `prepare.py --size` | default `1`; else 0 |"
    page = f"# Page\n\n## One\n\nText.\n\n| there | here | what is different |\n| --- | --- | --- |\n{row}\n\n## None\n"
    (alias,) = read_tables(page).pop("One")
    assert alias.theirs == ("clip_grad", "Gradient *.clip, N steps")
    assert alias.ours == ("--max_grad_norm 1", "prepare.py --size") and alias.difference == "default 1; else 0"


def test_options_are_found_by_name_label_and_short_form():
    for name in (
        "create_image_every",
        "Save an image to log directory every N steps, 0 to disable",
        "Create-Image_every",
    ):
        assert [alias.ours for alias in find_aliases(name)] == [("--validation_steps",)]
    assert find_aliases("lr")[0].ours == ("--learning_rate",) and find_aliases("xyzzy") == []
    assert find_aliases("id_task")[0].ours == ()


def test_short_forms_mean_existing_options_and_are_not_on_the_page():
    options = {option.lstrip("-") for option in build_parser()._option_string_actions}
    short = [name for names in SHORT_FORMS.values() for name in names.split()]
    on_the_page = {name for rows in read_tables(PAGE.read_text()).values() for row in rows for name in row.theirs}
    assert set(SHORT_FORMS) <= options and len(set(short)) == len(short)
    assert not set(short) & options and not set(short) & on_the_page


def test_short_forms_are_known_without_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(option_aliases, "PAGE", tmp_path / "none.md")
    assert find_aliases("lr")[0].ours == ("--learning_rate",) and find_aliases("id_task") == []
