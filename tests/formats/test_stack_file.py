"""`.hns` files: what each form computes, which files its names find, and what is refused."""

import pytest
import torch

import convert_to_webui
import hypernet
from hypernet import NotAHypernetwork, UserError
from hypernet.formats.stack_file import member_files
from hypernet.modeling.composition import Composition
from tests.helpers.tiny_models import trained_hypernetwork


@pytest.fixture
def folder(tmp_path):
    """A folder of a, b and c, each in another format and place."""
    hypernet.save(trained_hypernetwork(1), tmp_path / "a.pt")
    hypernet.save(trained_hypernetwork(2, "relu"), tmp_path / "b-2177.safetensors")
    hypernet.save(trained_hypernetwork(3), tmp_path / "more" / "my c")
    return tmp_path


def a(x, strength=1.0):
    return trained_hypernetwork(1)(x, strength)[0]


def b(x, strength=1.0):
    return trained_hypernetwork(2, "relu")(x, strength)[0]


def c(x, strength=1.0):
    return trained_hypernetwork(3)(x, strength)[0]


FORMS = {
    "a": a,
    "'a'": a,
    "['a']": a,
    "a(0123abcdef)": a,
    "my c": c,
    "['a.pt', 'b-2177.safetensors']": lambda x: b(a(x)),
    "('a', 0.5)": lambda x: a(x, 0.5),
    "{'a': 0.6}": lambda x: a(x, 0.6),
    "{'a': 1}": a,
    "[('a', 0.5), ('b-2177', 0.4)]": lambda x: b(a(x, 0.5), 0.4),
    "[{'a': 0.6}, 'b-2177', 'my c']": lambda x: c(b(a(x, 0.6))),
    "[['a'], {'b-2177'}, 'my c']": lambda x: c(b(a(x))),
    "{'a': 0.8, 'b-2177': 0.1}": lambda x: (8 * a(x) + b(x)) / 9,
    "{'a', 'b-2177', 'my c'}": lambda x: (a(x) + b(x) + c(x)) / 3,
    "[{('a', 0.45): 0.5, ('b-2177', 0.45): 0.5}, 'my c']": lambda x: c((a(x, 0.45) + b(x, 0.45)) / 2),
    "{\"{'a': 0.2, 'b-2177': 0.8}\": 0.8, 'my c': 0.2}": lambda x: 0.8 * (0.2 * a(x) + 0.8 * b(x)) + 0.2 * c(x),
    "[\"['a', 'a']\", 'b-2177']": lambda x: b(a(a(x))),
}


@pytest.mark.parametrize("text", FORMS)
def test_each_form_computes_what_the_extension_does(folder, text):
    (folder / "all.hns").write_text(f"\n{text}\n", encoding="utf-8")
    x = torch.randn(2, 5, 12)
    with torch.no_grad():
        torch.testing.assert_close(hypernet.load_stack(folder / "all.hns")(x)[0], FORMS[text](x))
    assert all(any(file.stem in name for name in (text, "my c")) for file in member_files(folder / "all.hns"))


def test_the_nearest_of_several_with_a_name_is_meant(folder):
    (folder / "all.hns").write_text("a")
    (folder / "0").mkdir()
    hypernet.save(trained_hypernetwork(3), folder / "0" / "a.pt")
    assert member_files(folder / "all.hns") == [folder / "a.pt"]
    (folder / "a.pt").rename(folder / "more" / "a.safetensors")
    assert member_files(folder / "all.hns") == [folder / "0" / "a.pt"]


def test_its_path_is_read_as_that_of_any_hypernetwork(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "all.hns").write_text("a")
    assert member_files("~/all.hns") == [folder / "a.pt"] and hypernet.load_stack("~/all.hns").config.name
    with pytest.raises(NotAHypernetwork, match=r"al\.hns: .*all\.hns"):
        hypernet.load_stack(folder / "al.hns")


def test_a_file_of_any_other_kind_is_loaded_as_itself(folder):
    assert not isinstance(hypernet.load_stack(folder / "a.pt"), Composition)
    (folder / "twice.hns").write_text("['a', 'a']")
    assert len(list(hypernet.load_stack(folder / "twice.hns").hypernetworks())) == 1


@pytest.mark.parametrize(
    "text, named",
    [
        ("", ""),
        ("[]", r"\[\]"),
        ("[1, 2]", "1"),
        ("['a', None]", "None"),
        ("['a'", "list"),
        ("{'a': 'b', 'my c': 1}", "'b'"),
        ("{'a': 1, 'my c': -1}", "sum"),
        ("('a', 1e999)", "inf"),
        ("('a', True)", "True"),
        ("('a', 0.5, 2)", "0.5, 2"),
        ("{\"['a', 'my c']\": 0.5}", "0.5"),  # only one hypernetwork has a strength
        ("['a', 'nowhere']", "nowhere"),
        ("a, my c", r"a, my c.*\["),
        ("a\nmy c", r"a my c.*\["),
        ("__import__('os').remove('a.pt')", "remove"),
        ("[__import__('os')]", "list"),
        ("[" * 90 + "'a'," + "]" * 90, ""),
        ("[" * 40000, ""),
        ("[" + "9" * 5000 + "]", ""),
        ("x" * 70000, "64 KiB"),
    ],
)
def test_what_is_unknown_is_refused(folder, text, named):
    (folder / "all.hns").write_text(text)
    with pytest.raises(NotAHypernetwork, match=f"all.hns: .*{named}") as error:
        hypernet.load_stack(folder / "all.hns")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_what_needs_one_hypernetwork_refuses_a_stack_by_name(folder):
    path = folder / "both.hns"
    path.write_text("['a', 'my c']")
    for arguments in (["--inspect"], [folder / "x.pt"], ["--fix"]):
        order = [*arguments, path] if arguments == ["--inspect"] else [path, *arguments]
        with pytest.raises(UserError, match="both.hns: .*hypernetworks"):
            convert_to_webui.main(list(map(str, order)))
    with pytest.raises(NotAHypernetwork, match="both.hns: .*hypernetworks"):
        hypernet.load(path)
