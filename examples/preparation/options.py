"""The options of prepare.py: each once, with its meaning, and what values of it can work."""

import json
import math
import os
from pathlib import Path

from examples.preparation.captions import TAGGER, check_names
from examples.preparation.focus import Focus
from hypernet.cli.script import ScriptParser
from hypernet.config import parse_size
from hypernet.data.captions import check_word_regex
from hypernet.data.image_io import MAX_PIXELS, check_color
from hypernet.utils.errors import UserError

CHANGEABLE = {"SRC", "DST", "overwrite", "sheet_images"}  # what may differ from one run into a folder to the next


# fmt: off
def parse_arguments(docstring: str, arguments=None):
    """The options, checked; `size` as (width, height), `exclude_tags` as a tuple, `focus` as a `Focus` or None.

    Raises:
        UserError: in one line, for what cannot work.
    """
    parser = ScriptParser(docstring)
    add = parser.add_argument
    add("SRC", type=Path, help="folder with pictures and captions, as the trainer reads one; nothing in it is changed")
    add("DST", type=Path, help="folder to write, with the same sub-folders; it may exist")
    add("--size", default="512", help="pixels of every picture: a side, or WIDTHxHEIGHT; default: %(default)s")
    add("--background", default="white", help="what is transparent is laid on it; default: %(default)s")
    add("--keep_alpha", action="store_true", help="keep transparency instead, for --alpha_weight in the training")
    add("--flip", action="store_true", help="a mirrored copy of each")
    add("--overwrite", action="store_true", help="delete first what this script has made in DST, nothing else")
    add("--sheet_images", type=int, default=48, help="at most so many on the sheet, 0 for none; default: %(default)s")

    add = parser.add_argument_group("the part that is taken; default: the largest in the middle").add_argument
    add("--split", action="store_true", help="pictures that are long or tall become two or more, side by side")
    add("--split_threshold", type=float, default=0.5, help="split if a crop leaves this share or less; default: %(default)s")
    add("--overlap_ratio", type=float, default=0.2, help="the least share that parts have in common; default: %(default)s")
    add("--focus", action="store_true", help="crop where faces, edges and detail are")
    add("--face_weight", type=float, default=0.9, help="of --focus; default: %(default)s")
    add("--edges_weight", type=float, default=0.5, help="of --focus; default: %(default)s")
    add("--entropy_weight", type=float, default=0.15, help="of --focus; default: %(default)s")
    add("--auto_size", action="store_true", help="instead of --size: the best one for each picture, sides multiples of 64")
    add("--min_side", type=int, default=384, help="of --auto_size, in pixels; default: %(default)s")
    add("--max_side", type=int, default=768, help="of --auto_size, in pixels; default: %(default)s")
    add("--min_area", type=int, default=64 * 64, help="of --auto_size, width times height; default: %(default)s")
    add("--max_area", type=int, default=640 * 640, help="of --auto_size, width times height; default: %(default)s")
    add("--size_threshold", type=float, default=0.1, help="of --auto_size: the greatest share cut off; default: %(default)s")
    add("--objective", choices=("area", "error"), default="area", help="of --auto_size: greatest area or least cut off")

    add = parser.add_argument_group("what is worth a look, or left out").add_argument
    add("--max_enlarged", type=float, default=1.0, help="enlarged more than so many times is too small; default: %(default)s")
    add("--skip_small", action="store_true", help="leave out what is too small")
    add("--same_threshold", type=float, default=0.02, help="pictures that differ by less are the same; default: %(default)s")
    add("--skip_duplicates", action="store_true", help="leave out all but the largest of those")

    add = parser.add_argument_group("captions, as .txt beside the pictures").add_argument
    add("--caption", nargs="+", default=[], metavar="NAME", help="filename, blip, tagger, or a captioning model of transformers by Hub id or folder; several are joined by commas")
    add("--existing_caption", choices=("ignore", "copy", "prepend", "append"), default="copy", help="what becomes of a text that is there: copy keeps it and asks no model; default: %(default)s")
    add("--caption_prompt", help="what a captioning model is asked, or begins with")
    add("--caption_tokens", type=int, default=64, help="longest caption of a model, in tokens; default: %(default)s")
    add("--tagger_model", default=TAGGER, help="Hub id or folder with model.onnx, selected_tags.csv; default: %(default)s")
    add("--tagger_threshold", type=float, default=0.35, help="least probability of a tag; default: %(default)s")
    add("--keep_underscores", action="store_true", help="in tags; default: they become spaces")
    add("--escape_brackets", action="store_true", help="brackets in tags get a backslash, for the WebUI")
    add("--order", choices=("score", "alphabet"), default="score", help="of tags; default: %(default)s")
    add("--exclude_tags", default="", help='tags to leave out, such as "text, watermark"')
    add("--caption_column", default="text", help="of a metadata file in SRC; default: %(default)s")
    add("--filename_word_regex", help="as in the training: of file names as captions, only its matches")
    add("--filename_join_string", default=" ", help="between these")
    args = parser.parse_args(arguments)
    check_arguments(args)
    args.exclude_tags = tuple(filter(None, map(str.strip, args.exclude_tags.split(","))))
    args.focus = Focus(args.face_weight, args.edges_weight, args.entropy_weight) if args.focus else None
    return args
# fmt: on


def check_arguments(args):
    """Turns --size into numbers. Raises: UserError for values that cannot work, and folders within one another."""
    check_folders(args.SRC, args.DST)
    option = "size"
    try:
        args.size = parse_size(args.size)
        option = "background"
        check_color(args.background)
        option = "filename_word_regex"
        check_word_regex(args.filename_word_regex or "")
    except ValueError as error:
        raise UserError(f"--{option} {error}") from None
    if args.size[0] * args.size[1] > MAX_PIXELS:
        raise UserError(f"--size {args.size[0]}x{args.size[1]}: more than {MAX_PIXELS} pixels")
    check_ranges(args)
    check_names(args.caption)
    if args.focus and not args.face_weight + args.edges_weight + args.entropy_weight > 0:
        raise UserError("--focus: one of --face_weight, --edges_weight and --entropy_weight must be above 0")
    if args.auto_size and (args.min_side > args.max_side or args.min_area > args.max_area):
        raise UserError(f"--auto_size: from {args.min_side} to {args.max_side} pixels a side, {args.min_area} to "
                        f"{args.max_area} in all: the first is to be the smaller one")  # fmt: skip


def check_ranges(args):
    """Raises: UserError for a number out of its range."""
    shares = ("split_threshold", "size_threshold", "same_threshold", "tagger_threshold", "overlap_ratio")
    positive = ("min_side", "max_side", "min_area", "max_area", "caption_tokens", "max_enlarged")
    weights = ("face_weight", "edges_weight", "entropy_weight", "sheet_images")
    for name in (*shares, *positive, *weights):
        value = getattr(args, name)
        if not math.isfinite(value) or value < 0:
            raise UserError(f"--{name} {value}: it must be 0 or more")
        if name in positive and value == 0:
            raise UserError(f"--{name} {value}: it must be above 0")
        if name in shares and value > 1:
            raise UserError(f"--{name} {value}: it is a share, from 0 to 1")
    if args.overlap_ratio > 0.9:
        raise UserError(f"--overlap_ratio {args.overlap_ratio}: it must be 0.9 at most")


def check_folders(source: Path, folder: Path):
    """Raises: UserError if one is the other, or lies in it, or DST is a file."""
    src, dst = source.resolve(), folder.resolve()
    if src == dst:
        raise UserError(f"DST {folder}: it is SRC itself, which is never changed; name another folder")
    if dst.is_relative_to(src):
        raise UserError(f"DST {folder}: it lies in SRC {source}; name a folder outside")
    if src.is_relative_to(dst):
        raise UserError(f"SRC {source}: it lies in DST {folder}; name a folder outside")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"DST {folder}: it is a file; name a folder")


def recorded(args) -> dict:
    """The options that shape what is made, as they are kept beside it."""
    options = {name: value for name, value in vars(args).items() if name not in CHANGEABLE}
    options["focus"] = args.focus is not None
    for name, decides in (("max_enlarged", args.skip_small), ("same_threshold", args.skip_duplicates)):
        if not decides:  # then it is only told
            del options[name]
    options = {"SRC": os.path.realpath(args.SRC), **options}
    return json.loads(json.dumps(options))


def named(name: str) -> str:
    """An option as it is written on the command line."""
    return name if name.isupper() else f"--{name}"
