"""Remedies for images of which a crop keeps little, for prepare.py and show_data.py."""

import argparse
from collections.abc import Mapping
from typing import Any

from examples.preparation.geometry import area_shares, automatic_size, is_small
from hypernet.config import TrainingConfig
from hypernet.data.buckets import aspect_buckets, kept_share, nearest_bucket

MIN_KEPT_SHARE = 0.6  # of an image's area
MIN_KEPT_FOCUS = 0.8  # of an image's faces, edges and detail; less cuts visibly into the subject
MIN_FILLED_SHARE = 0.25  # of the result of --fit; the rest is background


def joined(words: list[str]) -> str:
    """Return "a", "a or b", "a, b or c"."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def percent(share: float) -> str:
    """Return a fraction in percent: whole, but never "0%"."""
    return f"{share:.0%}" if share >= 0.005 else f"{100 * share:.1g}%"


# --- prepare.py


def is_cut(entry: Mapping[str, Any]) -> bool:
    """Return whether much is cut from an image, by its entry in the record. Splitting an image cuts nothing."""
    if len(entry["boxes"]) > 1:
        return False
    if "kept" in entry:  # with --focus
        return bool(entry["kept"] < MIN_KEPT_FOCUS)
    return kept_area(entry) < MIN_KEPT_SHARE


def cut_remark(entry: Mapping[str, Any], args: argparse.Namespace) -> str:
    """Return how little of an image is kept, or how little of the result it fills, and the remedy; "" if neither."""
    if is_cut(entry):
        return f"only {percent(kept_area(entry))} is kept; {joined(keeping_options(entry, args))} keeps more"
    width, height = entry["width"], entry["height"]
    filled = area_shares(width, height, entry["boxes"][0])[1]
    if len(entry["boxes"]) == 1 and filled < MIN_FILLED_SHARE:
        remedy = "a higher --split_threshold" if args.split else "--split"
        return f"it fills only {percent(filled)} of the result; {remedy} fills more"
    return ""


def keeping_options(entry: Mapping[str, Any], args: argparse.Namespace) -> list[str]:
    """Return the options of prepare.py that keep more of an image from which much is cut.

    --split suits an image that is long or tall enough to be split, --auto_size one that fits a size within its limits
    without being enlarged.
    """
    width, height = entry["width"], entry["height"]
    found = ["--fit"]
    if not args.split and kept_share(width, height, entry["size"]) <= args.split_threshold:
        found.append("--split")
    sides, areas = (args.min_side, args.max_side), (args.min_area, args.max_area)
    size = automatic_size(width, height, sides, areas, args.size_threshold, args.objective)
    if not args.auto_size and size and not is_small(max(size[0] / width, size[1] / height), args.max_enlarged):
        found.append("--auto_size")
    return found


def kept_area(entry: Mapping[str, Any]) -> float:
    """Return the fraction of an image that is kept, by its entry in the record."""
    return area_shares(entry["width"], entry["height"], entry["boxes"][0])[0]


# --- show_data.py


def training_remedy(width: int, height: int, config: TrainingConfig) -> str:
    """Return the remedy for an image that the trainer crops."""
    share = 0.0 if config.aspect_buckets else bucket_share(width, height, config.size)
    if share >= MIN_KEPT_SHARE:
        return f"--aspect_buckets keeps {percent(share)}"
    return "examples/prepare.py --split makes several images of it, --fit keeps all of it"


def bucket_share(width: int, height: int, size: tuple[int, int]) -> float:
    """Return the fraction of an image that --aspect_buckets keeps; 0 if `size` is too small for them."""
    try:
        buckets = aspect_buckets(*size)
    except ValueError:
        return 0.0
    return kept_share(width, height, nearest_bucket(width, height, buckets))
