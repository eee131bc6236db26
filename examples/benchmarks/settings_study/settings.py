"""What the study compares: settings, each a dict of the options in which it differs from the baseline.

Two names are not options of the training script:
    train_images: the number of training images, or "all" that the style has; the baseline has `TRAIN_IMAGES`.
    fresh_optimizer_every: continue every N steps from the exported file alone, without the optimizer's state.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Setting = dict[str, Any]

REPO = Path(__file__).resolve().parents[3]
MODEL = REPO / "examples" / "quickstart" / "model"
STYLES = ("openmoji", "streamline-emojis", "emojione", "icon-park")  # the hands that the UNet has not seen
TRAIN_IMAGES, VALIDATION_IMAGES = 32, 8

BASE: Setting = {
    "resolution": 128,
    "train_batch_size": 4,
    "activation": "swish",
    "learning_rate": "1e-3",
    "max_train_steps": 150,
    "validation_prompt": [
        "a cat on a blue background",
        "a big house on a green background",
        "an apple on a purple background",
        "a fish on an orange background",
        "a rocket on a pink background",
        "a strawberry on a yellow background",
        "a dog on a white background",
        "a bicycle on a green background",
        "a big tree on a blue background",
        "a mushroom on a pink background",
        "a car on a yellow background",
        "an owl on a red background",
    ],
    "validation_guidance_scale": 4,
    "validation_inference_steps": 12,
    "guard": False,  # it would rescue bad settings
    "report_to": "none",
}
SEEDS, BASELINE_SEEDS = (0, 1, 2), (3, 4, 5)  # the latter only for the baseline: most comparisons rest on it

_unet = json.loads((MODEL / "unet" / "config.json").read_text(encoding="utf-8"))
TEXT_WIDTH = _unet["cross_attention_dim"]
OTHER_WIDTHS = [width for width in dict.fromkeys(_unet["block_out_channels"]) if width != TEXT_WIDTH]

BASELINE: Setting = {}
LOW, HIGH = ({"learning_rate": rate} for rate in ("3e-4", "2e-3"))
FEW_IMAGES, MORE_IMAGES = ({"train_images": number} for number in (8, "all"))
LONG: Setting = {"max_train_steps": 500}
DEEP: Setting = {"layer_structure": "1,2,2,2,1"}
HOURGLASS: Setting = {"layer_structure": "1,0.75,0.5,0.5,0.5,0.75,1"}
LINEAR, RELU, ELU = ({"activation": name} for name in ("linear", "relu", "elu"))
NORM: Setting = {"layer_norm": True}
WEBUI_NORM: Setting = {**NORM, "layer_norm_init": "normal"}
DROPOUT: Setting = {"dropout_structure": "0,0.3,0"}
KAIMING: Setting = {"weight_init": "kaiming_normal"}

# Each section compares its settings with its first
SECTIONS: dict[str, list[Setting]] = {
    "learning rate": [
        BASELINE,
        {"learning_rate": "1e-4"},
        LOW,
        HIGH,
        *({"learning_rate": rate} for rate in ("3e-3", "1e-2", "3e-3:75, 3e-4:150")),
    ],
    "activation": [BASELINE, LINEAR, RELU, ELU],
    "activation, high learning rate": [HIGH, {**LINEAR, **HIGH}],
    "structure": [
        BASELINE,
        *({"layer_structure": text} for text in ("1,0.5,1", "1,4,1", "1,1.5,1.5,1", "1,2,3,2,1")),
        DEEP,
        HOURGLASS,
    ],
    "structure, low learning rate": [LOW, {**DEEP, **LOW}],
    "structure, high learning rate": [HIGH, {**DEEP, **HIGH}, {**HOURGLASS, **HIGH}],
    "structure, more images": [MORE_IMAGES, {**MORE_IMAGES, **DEEP}],
    "LayerNorm": [BASELINE, NORM, WEBUI_NORM, LINEAR, {**LINEAR, **NORM}, {**LINEAR, **WEBUI_NORM}],
    "activation after the last layer": [BASELINE, {"activate_output": True}, RELU, {**RELU, "activate_output": True}],
    "initialization": [
        BASELINE,
        *({"weight_init": name} for name in ("zero", "xavier_normal")),
        KAIMING,
        RELU,
        {**RELU, **KAIMING},
        ELU,
        {**ELU, **KAIMING},
    ],
    "dropout": [LONG, {**LONG, **DROPOUT}],
    "dropout, few images": [{**FEW_IMAGES, **LONG}, {**FEW_IMAGES, **LONG, **DROPOUT}],
    "data": [BASELINE, {"random_flip": True}, MORE_IMAGES],
    "template": [BASELINE, {"template": "[filewords], [name]"}],
    "resuming": [BASELINE, {"fresh_optimizer_every": 50}, HIGH, {**HIGH, "fresh_optimizer_every": 50}],
    "widths": [BASELINE, *({"widths": text} for text in (str(TEXT_WIDTH), ",".join(map(str, OTHER_WIDTHS))))],
}


def unique_settings(sections: Sequence[str] = tuple(SECTIONS)) -> list[Setting]:
    """Return the settings of some sections, each once."""
    settings: list[Setting] = []
    for section in sections:
        settings += [setting for setting in SECTIONS[section] if setting not in settings]
    return settings


def setting_label(setting: Setting) -> str:
    """Return what tables, plots and folders call a setting."""
    return ", ".join(f"{name} {value}" for name, value in setting.items()) or "baseline"


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """A training of a setting in a style with a seed.

    Attributes:
        root: the folder of the whole study.
    """

    root: Path
    style: str
    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        """The run's name among those of its style."""
        return f"{setting_label(self.setting)}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return self.root / self.style / re.sub(r"[^\w.,-]+", "_", self.name)

    @property
    def data(self) -> Path:
        """The folder of the style's images and captions."""
        return self.root / "data" / self.style

    @property
    def train_images(self) -> Path:
        """The list of the training images."""
        return self.data / f"train_{self.setting.get('train_images', TRAIN_IMAGES)}.txt"

    @property
    def ends(self) -> list[int]:
        """The last step of each part of the run: of more than one if its optimizer starts afresh."""
        steps = {**BASE, **self.setting}["max_train_steps"]
        every = self.setting.get("fresh_optimizer_every", steps)
        return [*range(every, steps, every), steps]

    def options(self, part: int = -1) -> Setting:
        """Return the training options of a part of the run, of the last by default.

        Each part but the first continues from the file of the part before. It has another seed, so that it does not
        meet the same images, noise and timesteps again.
        """
        part %= len(self.ends)
        options = {**BASE, **self.setting, "max_train_steps": self.ends[part], "seed": self.seed + 1000 * part}
        for name in ("train_images", "fresh_optimizer_every"):
            options.pop(name, None)
        return {
            "pretrained_model_name_or_path": str(MODEL),
            "train_data_dir": str(self.train_images),
            "validation_data_dir": str(self.data / "held_out"),
            "cache_dir": str(self.root / "cache"),
            "name": self.style,
            **options,
            "validation_loss_steps": self.ends[part],
            "checkpointing_steps": self.ends[part],
            "output_dir": str(self._part_folder(part)),
            "overwrite": True,  # of a run with other options; the same run resumes
            **({"init_from": str(self._part_folder(part - 1) / f"{self.style}.pt")} if part else {}),
        }

    def _part_folder(self, part: int) -> Path:
        return self.folder if part == len(self.ends) - 1 else Path(f"{self.folder}, part {part}")
