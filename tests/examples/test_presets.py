"""The presets in examples/: every option exists and goes with the others, and a training runs with them."""

import pytest
import yaml

from hypernet.cli.training_options import parse_config
from tests.helpers.scripts import REPO, train_here

PRESETS = [f"{card}{kind}" for card in ("t4_16gb", "8gb", "6gb", "h100") for kind in ("", "_sdxl")]
SMALL = ["--mixed_precision=no", "--max_train_steps=2", "--learning_rate=1e-4", "--validation_steps=1"]


def path_of(preset):
    return REPO / "examples" / "configs" / f"{preset}.yaml"


@pytest.mark.parametrize("preset", PRESETS)
def test_its_options_go_together(preset, images_dir):
    config = parse_config(["--config", str(path_of(preset)), "--train_data_dir", str(images_dir)])
    for option, value in yaml.safe_load(path_of(preset).read_text()).items():
        assert str(getattr(config, option)) == str(value) and f"examples/{preset}.yaml" in path_of(preset).read_text()
    is_xl = preset.endswith("_sdxl")
    assert (
        config.size == ((1024, 1024) if is_xl else (512, 512))
        and ("xl" in config.pretrained_model_name_or_path) == is_xl
    )


@pytest.mark.parametrize("preset, model", [("6gb", "epsilon"), ("8gb_sdxl", "xl")])
def test_a_training(models_dir, images_dir, tmp_path, preset, model):
    flags = [
        "--config",
        path_of(preset),
        *SMALL,
        "--name=x",
        "--validation_prompt=a cat",
        "--validation_inference_steps=2",
    ]
    said = train_here(models_dir, images_dir, tmp_path / "run", *flags, model=model)
    assert "2 steps in" in said and (tmp_path / "run" / "x.pt").is_file()
    assert (tmp_path / "run" / "previews" / "before_after.png").is_file()
