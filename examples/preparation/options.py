"""The options of prepare.py, each declared once with its meaning, and the checks of their values."""

import argparse
import math
import os
from pathlib import Path
from typing import Any

from examples.preparation.captions import TAGGER, check_names
from examples.preparation.focus import Focus
from examples.preparation.option_effects import effective_options, plain_options
from hypernet.cli.script import ScriptParser
from hypernet.config import parse_size
from hypernet.data.captions import check_word_regex
from hypernet.data.image_io import MAX_PIXELS, check_color
from hypernet.utils.errors import UserError

CHANGEABLE = {"SRC", "DST", "overwrite", "sheet_images"}  # may differ between two runs into the same folder


# fmt: off
def build_parser(docstring: str | None) -> ScriptParser:
    """Declare the options."""
    parser = ScriptParser(docstring)
    add = parser.add_argument
    add("SRC", type=Path, help="folder of images and captions, laid out as for training; it is never changed")
    add("DST", type=Path, help="folder to write, with the same subfolders; it may exist")
    add("--size", default="512", help="size of every image in pixels: one side, or WIDTHxHEIGHT; default: %(default)s")
    add("--background", default="white", help="color behind transparent pixels and, with --fit, around images; auto: the color of each image's own border; default: %(default)s")
    add("--keep_alpha", action="store_true", help="keep transparency instead, for --alpha_weight in training")
    add("--flip", action="store_true", help="add a mirrored copy of each image")
    add("--overwrite", action="store_true", help="first delete what this script made in DST, and nothing else")
    add("--sheet_images", type=int, default=48, help="maximum number of images on the sheet, 0 for no sheet; default: %(default)s")

    add = parser.add_argument_group("cropping; default: the largest centered crop").add_argument
    add("--split", action="store_true", help="split long and tall images into several that overlap")
    add("--split_threshold", type=float, default=0.5, help="split if a crop would keep this fraction or less; default: %(default)s")
    add("--overlap_ratio", type=float, default=0.2, help="minimum overlap of neighboring parts, as a fraction; default: %(default)s")
    add("--fit", action="store_true", help="crop nothing: put the whole image on a --background")
    add("--keep_size", action="store_true", help="crop and resize nothing")
    add("--focus", action="store_true", help="crop where faces, edges and detail are")
    add("--face_weight", type=float, default=0.9, help="with --focus: weight of faces; default: %(default)s")
    add("--edges_weight", type=float, default=0.5, help="with --focus: weight of edges; default: %(default)s")
    add("--entropy_weight", type=float, default=0.15, help="with --focus: weight of detail; default: %(default)s")
    add("--auto_size", action="store_true", help="choose the best size for each image instead of --size; its sides are multiples of 64")
    add("--min_side", type=int, default=384, help="with --auto_size: minimum side in pixels; default: %(default)s")
    add("--max_side", type=int, default=768, help="with --auto_size: maximum side in pixels; default: %(default)s")
    add("--min_area", type=int, default=64 * 64, help="with --auto_size: minimum width times height; default: %(default)s")
    add("--max_area", type=int, default=640 * 640, help="with --auto_size: maximum width times height; default: %(default)s")
    add("--size_threshold", type=float, default=0.1, help="with --auto_size: maximum fraction cut off; default: %(default)s")
    add("--objective", choices=("area", "error"), default="area", help="with --auto_size: prefer the largest area, or the least cut off; default: %(default)s")

    add = parser.add_argument_group("small images and duplicates").add_argument
    add("--max_enlarged", type=float, default=1.0, help="report images that are enlarged more than this many times; default: %(default)s")
    add("--skip_small", action="store_true", help="skip these images")
    add("--same_threshold", type=float, default=0.02, help="report images that differ by less than this, from 0 to 1; default: %(default)s")
    add("--skip_duplicates", action="store_true", help="keep only the largest of these images")

    add = parser.add_argument_group("captions, written as .txt beside the images").add_argument
    add("--caption", nargs="+", default=[], metavar="NAME", help="filename, blip, tagger, or the Hub id or folder of a captioning model; several are joined by commas")
    add("--existing_caption", choices=("ignore", "copy", "prepend", "append"), default="copy", help="what to do with a written caption: copy keeps it and runs no model; default: %(default)s")
    add("--caption_prompt", help="question for a captioning model, or the start of its caption")
    add("--num_beams", type=int, help="beams of a captioning model's search; default: the model's own setting, usually 1")
    add("--min_length", type=int, help="minimum length of a model's caption, in tokens; default: the model's own setting, usually 0")
    add("--max_length", "--caption_tokens", type=int, default=64, help="maximum length of a model's caption, in tokens; default: %(default)s")
    add("--tagger_model", default=TAGGER, help="Hub id or folder with model.onnx and selected_tags.csv; default: %(default)s")
    add("--tagger_threshold", type=float, default=0.35, help="minimum probability of a tag; default: %(default)s")
    add("--keep_underscores", action="store_true", help="keep underscores in tags; default: they become spaces")
    add("--escape_brackets", action="store_true", help="put a backslash before brackets in tags, for the WebUI")
    add("--order", choices=("score", "alphabet"), default="score", help="order of tags; default: %(default)s")
    add("--exclude_tags", default="", help='tags to leave out, such as "text, watermark"')
    add("--caption_column", default="text", help="caption column of a metadata file in SRC; default: %(default)s")
    add("--filename_word_regex", help="keep only the matches of this pattern when a file name serves as the caption")
    add("--filename_join_string", default=" ", help="text that joins those matches; default: a space")
    return parser
# fmt: on


def parse_arguments(docstring: str | None, arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the options; `size` becomes (width, height), `exclude_tags` a tuple, `focus` a `Focus` or None.

    Raises:
        UserError: for an option or value that cannot work.
    """
    args = build_parser(docstring).parse_args(arguments)
    check_arguments(args)
    return convert(args)


def convert(args: argparse.Namespace) -> argparse.Namespace:
    """Convert the values that the script does not use as text.

    Raises:
        ValueError: for a bad --size.
    """
    args.size = parse_size(args.size)
    args.exclude_tags = tuple(filter(None, map(str.strip, args.exclude_tags.split(","))))
    args.focus = Focus(args.face_weight, args.edges_weight, args.entropy_weight) if args.focus else None
    return args


def default_options() -> dict[str, Any]:
    """Return the default of every option, in the form of a record."""
    return plain_options(vars(convert(build_parser(None).parse_args(["SRC", "DST"]))))


def check_arguments(args: argparse.Namespace) -> None:
    """Check the options, alone and together.

    Raises:
        UserError: for values that cannot work, and for folders that contain one another.
    """
    check_folders(args.SRC, args.DST)
    option = "size"
    try:
        size = parse_size(args.size)
        option = "background"
        if args.background != "auto":
            check_color(args.background)
        option = "filename_word_regex"
        check_word_regex(args.filename_word_regex or "")
    except ValueError as error:
        raise UserError(f"--{option} {error}") from None
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"--size {size[0]}x{size[1]}: it must have at most {MAX_PIXELS} pixels")
    check_ranges(args)
    check_names(args.caption)
    check_cropping(args)


def check_cropping(args: argparse.Namespace) -> None:
    """Check that the options for cropping do not contradict each other.

    Raises:
        UserError: if they do.
    """
    if args.fit and args.focus:
        raise UserError("--fit --focus: --fit keeps the whole image, so there is no crop to choose; leave one out")
    for option in ("fit", "focus", "split", "auto_size"):
        if args.keep_size and getattr(args, option):
            raise UserError(f"--keep_size --{option}: --keep_size crops and resizes nothing; leave one out")
    if args.focus and not args.face_weight + args.edges_weight + args.entropy_weight > 0:
        raise UserError("--focus: one of --face_weight, --edges_weight and --entropy_weight must be above 0")
    for option in ("side", "area"):
        lowest, highest = getattr(args, f"min_{option}"), getattr(args, f"max_{option}")
        if args.auto_size and lowest > highest:
            raise UserError(f"--auto_size: --min_{option} {lowest} is more than --max_{option} {highest}")


def check_ranges(args: argparse.Namespace) -> None:
    """Check that numbers are in range.

    Raises:
        UserError: if one is not.
    """
    fractions = ("split_threshold", "size_threshold", "same_threshold", "tagger_threshold", "overlap_ratio")
    positive = ("min_side", "max_side", "min_area", "max_area", "max_length", "num_beams", "max_enlarged")
    others = ("face_weight", "edges_weight", "entropy_weight", "sheet_images", "min_length")
    for name in (*fractions, *positive, *others):
        value = getattr(args, name)
        if value is None:
            continue
        if not math.isfinite(value) or value < 0:
            raise UserError(f"--{name} {value}: it must be 0 or more")
        if name in positive and value == 0:
            raise UserError(f"--{name} {value}: it must be above 0")
        if name in fractions and value > 1:
            raise UserError(f"--{name} {value}: it must be between 0 and 1")
    if args.overlap_ratio > 0.9:
        raise UserError(f"--overlap_ratio {args.overlap_ratio}: it must be at most 0.9")
    if args.min_length is not None and args.min_length > args.max_length:
        raise UserError(f"--min_length {args.min_length}: it is more than --max_length {args.max_length}")


def check_folders(source: Path, target: Path) -> None:
    """Check that neither folder contains the other, and that the target is not a file.

    Raises:
        UserError: otherwise.
    """
    src, dst = source.resolve(), target.resolve()
    if src == dst:
        raise UserError(f"DST {target}: it is SRC itself, which is never changed; name another folder")
    if dst.is_relative_to(src):
        raise UserError(f"DST {target}: it lies in SRC {source}; name a folder outside")
    if src.is_relative_to(dst):
        raise UserError(f"SRC {source}: it lies in DST {target}; name a folder outside")
    if source.is_file():
        raise UserError(f"SRC {source}: it is a file; name a folder")
    if target.exists() and not target.is_dir():
        raise UserError(f"DST {target}: it is a file; name a folder")


def recorded_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that affect what is made, in the form of a record."""
    options = {name: value for name, value in vars(args).items() if name not in CHANGEABLE}
    return effective_options(plain_options({"SRC": os.path.realpath(args.SRC), **options}))
