"""Which options of prepare.py have an effect, and which have changed since an earlier run."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from hypernet.utils.errors import quoted_if_needed

Options = Mapping[str, Any]  # name -> value, as JSON holds it

RENAMED = {"caption_tokens": "max_length"}  # in records of earlier versions
NOT_MODELS = ("filename", "tagger")  # values of --caption that are not captioning models


@dataclasses.dataclass(frozen=True)
class Group:
    """Options that have an effect only together with others."""

    names: tuple[str, ...]
    apply: Callable[[Options], bool]
    otherwise: str  # completes the note "no effect ..."; "" for no note, since they still shape the report


GROUPS = (
    Group(
        ("size",),
        lambda options: options["split"] or not (options["auto_size"] or options["keep_size"]),
        "with --auto_size or --keep_size",
    ),
    Group(("split_threshold", "overlap_ratio"), lambda options: options["split"], "without --split"),
    Group(("face_weight", "edges_weight", "entropy_weight"), lambda options: options["focus"], "without --focus"),
    Group(
        ("min_side", "max_side", "min_area", "max_area", "size_threshold", "objective"),
        lambda options: options["auto_size"],
        "without --auto_size",
    ),
    Group(("max_enlarged",), lambda options: options["skip_small"], ""),
    Group(("same_threshold",), lambda options: options["skip_duplicates"], ""),
    Group(
        ("caption_prompt", "num_beams", "min_length", "max_length"),
        lambda options: any(name not in NOT_MODELS for name in options["caption"]),
        "without --caption blip or another captioning model",
    ),
    Group(
        ("tagger_model", "tagger_threshold", "keep_underscores", "escape_brackets", "order", "exclude_tags"),
        lambda options: "tagger" in options["caption"],
        "without --caption tagger",
    ),
)


def plain_options(options: Options) -> dict[str, Any]:
    """Return options in the form of a record's JSON: tuples as lists, and --focus as given or not."""
    return dict(json.loads(json.dumps({**options, "focus": bool(options["focus"])}, default=str)))


def effective_options(options: Options) -> dict[str, Any]:
    """Return the options that affect what is made."""
    idle = {name for group in GROUPS if not group.apply(options) for name in group.names}
    return {name: value for name, value in options.items() if name not in idle}


def idle_notes(options: Options, defaults: Options) -> list[str]:
    """Return a note for each group of given options that have no effect."""
    notes = []
    for group in GROUPS:
        given = [flag(name) for name in group.names if options[name] != defaults[name]]
        if given and group.otherwise and not group.apply(options):
            notes.append(f"{', '.join(given)}: no effect {group.otherwise}")
    return notes


def changed_options(recorded: Options, options: Options, defaults: Options) -> dict[str, Any]:
    """Return the options that have changed since a folder was made, as name -> earlier value.

    An option that had no effect then or has none now is left out: the option that it depends on is reported instead.

    Args:
        recorded: those of the folder's record; earlier versions did not record all of them.
        options: those that have an effect now.
    """
    earlier = effective_options({**defaults, **{RENAMED.get(name, name): recorded[name] for name in recorded}})
    return {name: earlier[name] for name in options if name in earlier and earlier[name] != options[name]}


def flag(name: str) -> str:
    """Return an option as it is written on the command line."""
    return name if name.isupper() else f"--{name}"


def describe(name: str, value: object) -> str:
    """Return an option's value as it is written on the command line, for a message."""
    if value is None or isinstance(value, bool) or value == []:
        return "given" if value else "not given"
    if isinstance(value, list):
        return {"size": "x", "exclude_tags": ", "}.get(name, " ").join(map(str, value))
    return quoted_if_needed(str(value))
