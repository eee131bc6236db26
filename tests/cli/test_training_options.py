"""Options from the command line and from YAML, `--help` and the table of options."""

import ast
import subprocess
import sys

import pytest

from hypernet.cli.training_options import build_parser, option_groups, options_tables, parse_config, run_label
from hypernet.config import GROUPS
from hypernet.utils.errors import UserError
from tests.helpers.scripts import REPO

REQUIRED = ["--pretrained_model_name_or_path", "model", "--train_data_dir", "images"]
HEAVY = {"torch", "numpy", "transformers", "diffusers", "accelerate", "datasets", "huggingface_hub"}


def test_flags_override_yaml(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "pretrained_model_name_or_path: m\ntrain_data_dir: d\nmax_train_steps: 30\nlearning_rate: 5e-6\n"
        "layer_structure: [1, 1.5, 1]\nlayer_norm: true\nvalidation_prompt: [a cat, 'a dog, running']\n"
        "adam_epsilon: 1e-7\nwidths: null\noutput_dir: out/My style\n"
    )
    config = parse_config(["--config", str(file), "--max_train_steps", "50"])
    assert (config.max_train_steps, config.learning_rate, config.adam_epsilon) == (50, "5e-6", 1e-7)
    assert config.structure()["layer_structure"] == [1, 1.5, 1] and config.layer_norm and config.widths is None
    assert config.validation_prompt == ["a cat", "a dog, running"] and config.name == "My style"
    assert parse_config(["--layer_norm=false", "--config", str(file)]).layer_norm is False
    assert parse_config(["--config", str(file), "--validation_prompt", "a fox"]).validation_prompt == ["a fox"]


def test_dashes_and_underscores_are_the_same():
    config = parse_config([*REQUIRED, "--max-train-steps=7", "--no-guard", "--validation-prompt", "a well-kept cat"])
    assert (config.max_train_steps, config.guard, config.validation_prompt) == (7, False, ["a well-kept cat"])


def test_several_folders_from_flags_and_yaml(tmp_path, monkeypatch):
    for name in ("a", "b", "-c", "template"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    model = ["--pretrained_model_name_or_path=m"]
    assert parse_config([*model, "--train_data_dir", "a", "b:2", "--seed=1"]).train_data_dir == ["a", "b:2"]
    assert parse_config([*model, "--train_data_dir", "a:2"]).train_data_dir == "a:2"
    assert parse_config([*model, "--train_data_dir", "a", "--train_data_dir", "b"]).train_data_dir == "b"
    assert parse_config([*model, "--train_data_dir", "a", "template"]).train_data_dir == ["a", "template"]
    (tmp_path / "a.yaml").write_text("train_data_dir: [a, 'b:2', -c]\n")
    assert parse_config([*model, "--config=a.yaml"]).train_data_dir == ["a", "b:2", "./-c"]
    assert parse_config([*model, "--config=a.yaml", "--train_data_dir", "b"]).train_data_dir == "b"
    config = parse_config([*model, "--config=a.yaml", "--train_data_dir=", "--dataset_name=a/b"])
    assert config.train_data_dir is None
    (tmp_path / "a.yaml").write_text("train_data_dir:\n  - a: 2\n")
    with pytest.raises(UserError, match="train_data_dir, item 1"):
        parse_config([*model, "--config=a.yaml"])


def test_repeated_options_extend():
    config = parse_config([*REQUIRED, "--validation_prompt", "a", "b", "--validation_prompt", "c"])
    assert config.validation_prompt == ["a", "b", "c"]


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--learn", "1"], "--learn"),
        (["stray"], "stray"),
        (["--train_data_dir", "My", "Drawings"], "'Drawings'.*quotes"),
        (["--max_train_steps", "ten"], "^--max_train_steps.*ten"),
        (["--config", "none.yaml"], "--config none.yaml"),
        (["--config", "kohya.toml"], "--config kohya.toml.*YAML"),
        (["--crop", "middle"], "--crop.*center.*random.*none"),
        (["--latent_sampling", "mean"], "--latent_sampling.*deterministic"),
        (["--mixed_precision", "fp8"], "--mixed_precision.*bf16"),
        (["--report_to", "mlflow"], "--report_to.*tensorboard"),
        (["--lr_scheduler", "cosin"], "--lr_scheduler.*cosine"),
        (["--quantize", "int4"], "--quantize.*nf4"),
        (["--layer_norm=maybe"], "--layer_norm.*maybe"),
    ],
)
def test_parsing_errors_are_one_line_that_names_the_option(flags, named):
    with pytest.raises(UserError, match=named) as error:
        parse_config([*REQUIRED, *flags])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, named",
    [
        ("train_data: x\n", "train_data.*train_data_dir"),
        ("template: [filewords]", "template"),
        ("template: {caption}", "template.*mapping"),
        ("validation_prompt:\n  - a cat: sitting\n", "validation_prompt, item 1.*mapping"),
        ("validation_prompt:\n  - a cat\n  -\n", "validation_prompt, item 2.*empty"),
        ("validation_prompt: [[a, b]]", "validation_prompt, item 1"),
        ("seed: 1\nseed: 2\n", "line 2.*'seed'((?!quotes).)*$"),
        ("- name: x\nseed: 1\n", "line 2.*list((?!quotes).)*$"),
        ("config: b.yaml\n", "config: ((?!did you mean).)*$"),
        ("seed: {a: *b}", "line 1"),
        ("template: [filewords], by [name]", "line 1.*quotes"),
        ("[1, 2", "a.yaml"),
        ("just words", "a.yaml"),
    ],
)
def test_yaml_errors_name_file_and_option(tmp_path, text, named):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=f"a.yaml.*{named}" if named != "a.yaml" else named):
        parse_config(["--config", str(tmp_path / "a.yaml")])


@pytest.mark.parametrize(
    "text, value",
    [
        ("mixed_precision: no", "no"),
        ("name: 1.10", "1.10"),
        ("name: 007", "007"),
        ("name: no", "no"),
        ("name: 2024-01-01", "2024-01-01"),
        ("name: !!int 1", "1"),
        ("max_train_steps: 010", 10),
        ("learning_rate: 1:50", "1:50"),
        ("validation_prompt: [a cat, yes, -1, 12:30]", ["a cat", "yes", "-1", "12:30"]),
        ("validation_prompt: '- a cat'", ["- a cat"]),
        ("caption_column: 'C:\\new\\table'", "C:\\new\\table"),
        ("layer_norm: true", True),
        ("layer_norm: Yes", True),
        ("guard: off", False),
        ("name: null", "ink"),
        ("name:", "ink"),
        ("adam_beta1: ~", None),
        ("<<: {seed: 4}", None),
    ],
)
def test_yaml_values_are_literal_text(tmp_path, text, value):
    base = "pretrained_model_name_or_path: m\ntrain_data_dir: d\noutput_dir: out/ink\n"
    key = text.partition(":")[0]
    lines = [line for line in base.splitlines() if not line.startswith(f"{key}:")]
    (tmp_path / "a.yaml").write_text("\n".join([*lines, text]))
    config = parse_config(["--config", str(tmp_path / "a.yaml")])
    assert config.seed == 4 if key == "<<" else getattr(config, key) == value


def test_home_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "my templates").mkdir()
    (tmp_path / "my templates" / "t.txt").write_text("by [name]")
    options = {"pretrained_model_name_or_path": "~/m", "train_data_dir": "~/d", "output_dir": "~/o", "cache_dir": "~/c"}
    options |= {"lora": "~/l.safetensors:0.5", "init_from": "~/i.pt", "template": "~/my templates/t.txt"}
    expected = {key: value.replace("~", str(tmp_path)) for key, value in options.items()}
    expected["lora"] = [expected["lora"]]
    (tmp_path / "a.yaml").write_text("\n".join(f"{key}: {value}" for key, value in options.items()))
    for flags in (["--config=~/a.yaml"], [f"--{key}={value}" for key, value in options.items()]):
        config = parse_config(flags)
        assert {key: getattr(config, key) for key in options} == expected


def test_help_has_every_option_once_in_the_groups_of_the_docs():
    text = build_parser().format_help()
    headings = [heading for heading, _ in option_groups()]
    assert headings == list(GROUPS)
    assert [text.index(f"\n{heading}:\n") for heading in headings] == sorted(text.index(f"\n{h}:\n") for h in headings)
    options = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    fields = [field.name for _, group in option_groups() for field in group]
    assert options == ["--config", *(name for field in fields for name in _flags(field))]
    assert "None" not in text and text.count("Required") == 2


def _flags(field):
    return [f"--{field}", "--no_guard"] if field == "guard" else [f"--{field}"]


def test_options_page_is_up_to_date():
    """`python -m hypernet.cli.training_options` prints the tables."""
    assert options_tables() in (REPO / "examples" / "docs" / "options.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("flags", [["--help"], [*REQUIRED, "--optimizer=AdamV"], [*REQUIRED, "--activation=relux"]])
def test_help_and_mistakes_do_not_load_torch(flags):
    code = "import runpy, sys\ntry: runpy.run_path('train_hypernetwork.py', run_name='__main__')\n"
    code += "except SystemExit as end: print(end.code, [m for m in sys.modules if '.' not in m])"
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=REPO, capture_output=True, text=True, timeout=100)
    *_, last = done.stdout.splitlines()
    exit_code, _, modules = last.partition(" ")
    assert exit_code == ("0" if flags == ["--help"] else "2")
    assert not HEAVY & set(ast.literal_eval(modules))
    if flags != ["--help"]:
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and flags[-1][:8] in done.stderr


def test_runs_are_labeled_by_what_differs_from_their_config_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "pretrained_model_name_or_path: m\ntrain_data_dir: d\nname: ink\nactivation: relu\nlearning_rate: 1e-4\n"
    )
    flags = ["--config", str(file), "--activation=mish", "--learning-rate", "1e-3", "--no_guard", "--output_dir=o/b"]
    flags += ["--adam_beta2=0.99", "--train_batch_size=1", "--validation_prompt", "a cat"]
    label = run_label(parse_config(flags), flags)
    assert label == "ink, activation=mish, learning_rate=1e-3, guard=False, adam_beta2=0.99"  # defaults are left out
    assert run_label(parse_config([*flags, "--run_name=first"]), flags) == "first"
    assert run_label(parse_config(["--config", str(file)]), ["--config", str(file)]) == "ink"
