"""The presets in examples/configs: every option exists, the options fit together, and training runs with them."""

import pytest
import yaml

from hypernet.cli.training_options import parse_config
from tests.helpers.scripts import REPO, read_csv, train_here

PRESETS = [f"{card}{kind}" for card in ("t4_16gb", "8gb", "6gb", "h100") for kind in ("", "_sdxl")]
SMALL = ["--mixed_precision=no", "--max_train_steps=2", "--learning_rate=1e-4", "--validation_steps=1"]
SMALL += ["--logging_steps=1", "--name=x", "--validation_prompt=a cat", "--validation_inference_steps=2"]


def preset_path(preset):
    return REPO / "examples" / "configs" / f"{preset}.yaml"


@pytest.mark.parametrize("preset", PRESETS)
def test_options_fit_together(preset, images_dir):
    path, is_xl = preset_path(preset), preset.endswith("_sdxl")
    config = parse_config(["--config", str(path), "--train_data_dir", str(images_dir)])
    for option, value in yaml.safe_load(path.read_text()).items():
        assert str(getattr(config, option)) == str(value)
    assert f"--config examples/configs/{preset}.yaml" in path.read_text()  # the command in its comment
    assert config.size == ((1024, 1024) if is_xl else (512, 512))
    assert ("xl" in config.pretrained_model_name_or_path) == is_xl


@pytest.mark.parametrize("preset, model", [("6gb", "epsilon"), ("8gb_sdxl", "xl")])
def test_trains(models_dir, images_dir, tmp_path, preset, model):
    output = tmp_path / "run"
    train_here(models_dir, images_dir, output, "--config", preset_path(preset), *SMALL, model=model)
    assert read_csv(output / "hypernetwork_loss.csv", "step") == [1, 2]
    assert (output / "x.pt").is_file()
    assert (output / "previews" / "before_after.png").is_file()
