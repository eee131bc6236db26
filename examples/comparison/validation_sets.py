"""Find out which runs were measured on the same images and captions: only their figures can be compared."""

import math
from typing import TYPE_CHECKING

from hypernet.data.folder_repeats import folder_paths
from hypernet.utils.errors import counted

if TYPE_CHECKING:
    from examples.comparison.results import Result

# Relative difference of the base model's loss up to which captions, sizes and base model count as the same; other
# precisions and devices differ by less
TOLERANCE = 0.005
# Options that tell what a run without validation images is measured on
PLACES = ("train_data_dir", "dataset_name", "pretrained_model_name_or_path", "resolution")


class ValidationSet:
    """What some of the runs were measured on: the same images, captions and base model.

    Args:
        number: counts from 1 in the order of the runs.
        first: its first run.
    """

    def __init__(self, number: int, first: "Result"):
        self.number, self.first = number, first

    @property
    def base_loss(self) -> float | None:
        """The validation loss of the base model; None without validation images."""
        return self.first.val_loss_base

    def holds(self, result: "Result") -> bool:
        """Whether another run was measured on the same."""
        first = self.first
        if result.validation_images != first.validation_images:
            return False
        if first.val_loss_base is None or result.val_loss_base is None:
            same_kind = first.val_loss_base is result.val_loss_base
            return same_kind and all(first.options.get(name) == result.options.get(name) for name in PLACES)
        return math.isclose(first.val_loss_base, result.val_loss_base, rel_tol=TOLERANCE)

    def describe(self) -> str:
        """Return its number, images and base loss: "1 (6 images of emoji, base model 0.6376)"."""
        options, images = self.first.options, self.first.validation_images
        place = options.get("validation_data_dir") or options.get("train_data_dir") or options.get("dataset_name") or ""
        folders = [folder.name for folder in folder_paths(place)]
        what = (
            counted(len(images), "image") if images else "the training images" if self.base_loss is None else "images"
        )
        base = "" if self.base_loss is None else f", base model {self.base_loss:.4f}"
        return f"{self.number} ({what} of {', '.join(folders)}{base})"


def find_validation_sets(results: list["Result"]) -> list[ValidationSet]:
    """Set `validation_set` of all runs that have measured anything, and return the sets."""
    sets: list[ValidationSet] = []
    for result in results:
        if result.has_scores or result.val_loss is not None:
            found = next((each for each in sets if each.holds(result)), None)
            if found is None:
                found = ValidationSet(len(sets) + 1, result)
                sets.append(found)
            result.validation_set = found
    return sets
