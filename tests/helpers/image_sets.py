"""Open folders of images as a run does."""

from pathlib import Path

from hypernet.cli.training_options import parse_config
from hypernet.config import TrainingConfig
from hypernet.data.image_index import ImageRecord, index_images
from hypernet.data.image_source import ImageSource, open_image_source


def index_folder(
    models_dir: Path, images_dir: Path, tmp_path: Path, *flags: str, model: str = "epsilon"
) -> tuple[TrainingConfig, ImageSource, list[ImageRecord]]:
    """Return the options of a run on this folder, its image source and its image records."""
    options = {"pretrained_model_name_or_path": models_dir / model, "train_data_dir": images_dir}
    options |= {"resolution": 64, "cache_dir": tmp_path / "cache", "output_dir": tmp_path / "run"}
    config = parse_config([*(f"--{key}={value}" for key, value in options.items()), *flags])
    source = open_image_source(config)
    return config, source, index_images(source, config, 8)[0]
