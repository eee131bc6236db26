"""The sheet of prepare.py: each image with its crops framed, and beside it what was made of it."""

import argparse
import contextlib
import dataclasses
import functools
import math
from pathlib import Path

from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from examples.preparation.cutting import Job, make_opaque
from examples.preparation.geometry import inside
from examples.preparation.record import Record, printable
from hypernet.data.captions import read_any_encoding
from hypernet.data.image_io import Box, map_in_threads, read_image
from hypernet.data.image_source import ImageSource
from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.image_grid import load_font

# Lengths in pixels
CELL = 208  # longer side of an image
PAD, GAP, ARROW = 12, 16, 28  # inside a card, between cards, between before and after
FONT, LINE = 14, 20
CARD = 2 * CELL + ARROW + 2 * PAD, CELL + 4 * LINE + 3 * PAD - 4  # (width, height)

COLUMNS, FEW_COLUMNS, FEW = 5, 3, 12  # up to 12 cards stand in 3 columns
MAX_PARTS = 9  # of one image
FRAME_COLORS = ("#ff8c1a", "#1aa3ff", "#ff3d81", "#35b54a")  # of the parts, in turn
CARD_COLOR, TEXT, DETAILS, REMARK = "#f3f3f1", "#222222", "#6d6d68", "#b3261e"
DIMMED = 0.45  # opacity of what is cropped away


@dataclasses.dataclass
class Card:
    """One image on the sheet: before with frames, its parts after, and four lines of text below."""

    before: Image.Image
    after: list[Image.Image]
    name: str
    caption: str
    details: str
    remark: str


def sheet_path(folder: Path) -> Path:
    """Return the path of a folder's sheet: beside the folder, for an image in it would be trained on."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}_sheet.png")


def write_sheet(
    args: argparse.Namespace, source: ImageSource, record: Record, jobs: list[Job], remarks: dict[str, str]
) -> None:
    """Write the sheet with up to --sheet_images evenly chosen images, unless its path holds another file.

    Args:
        remarks: source image -> what is wrong with it, shown in red.
    """
    made = [job for job in jobs if "files" in record.entries[job.source]]
    if not args.sheet_images or not made:
        return
    path = sheet_path(args.DST)
    if path.exists() and not record.sheet:
        print(f"note: {path} exists and was not made by prepare.py; no sheet is written")
        return
    count = min(len(made), args.sheet_images)
    chosen = [made[i * len(made) // count] for i in range(count)]
    make = functools.partial(make_card, args, source, record, remarks)
    with contextlib.closing(map_in_threads(make, chosen)) as found:
        cards = [card for card in tqdm(found, total=count, desc="Drawing the sheet") if card]
    if not record.sheet:
        record.sheet = True
        record.append({"sheet": True})
    with atomic_write(path) as temporary:
        title = f"{args.DST.resolve().name}: {len(cards)} of {len(made)} images, before and after"
        draw_sheet(cards, title).save(temporary, "PNG")
    print(f"{path}: the images before and after")


def make_card(
    args: argparse.Namespace, source: ImageSource, record: Record, remarks: dict[str, str], job: Job
) -> Card | None:
    """Return the card of an image, or None if one of its files has disappeared."""
    entry, remark = record.entries[job.source], remarks.get(job.source, "")
    names = [name for name in entry["files"] if name.endswith(".png")][:: 2 if args.flip else 1]
    try:
        before = make_opaque(read_image(source.read(job.row)), args.background)
        parts = [on_checkerboard(Image.open(args.DST / name)) for name in names[:MAX_PARTS]]
    except (ValueError, OSError):
        return None
    size = "x".join(map(str, entry["size"]))
    details = f"{entry['width']}x{entry['height']} to {f'{len(names)} parts of ' if len(names) > 1 else ''}{size}"
    details += ", plus mirrored" if args.flip else ""
    text = args.DST / Path(names[0]).with_suffix(".txt")
    caption = read_any_encoding(text).strip() if text.exists() else job.name_text
    caption = f'"{" ".join(caption.split())}"'
    after = [fit(part, part_side(len(parts))) for part in parts]
    return Card(draw_frames(before, entry["boxes"]), after, job.source, caption, details, remark)


def part_side(count: int) -> int:
    """Return the longer side of each of `count` parts."""
    side = CELL // math.ceil(math.sqrt(count))
    return side if count == 1 else side - 12  # a gap between parts


def fit(image: Image.Image, side: int) -> Image.Image:
    """Resize an image so that its longer side is `side`; small ones are enlarged."""
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def on_checkerboard(image: Image.Image) -> Image.Image:
    """Convert an image to RGB; a checkerboard shows through transparent pixels."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    board, field = Image.new("RGB", image.size, "white"), max(4, max(image.size) // 16)
    draw = ImageDraw.Draw(board)
    for top in range(0, image.height, field):
        for left in range(top // field % 2 * field, image.width, 2 * field):
            draw.rectangle([left, top, left + field - 1, top + field - 1], fill="#dcdcdc")
    board.paste(image, mask=image.getchannel("A"))
    return board


def draw_frames(image: Image.Image, boxes: list[Box]) -> Image.Image:
    """Return the image at the size of a cell, each box in a frame of its color and the rest dimmed."""
    small = fit(image, CELL)
    x_scale, y_scale = small.width / image.width, small.height / image.height
    frames = []
    for box in boxes:
        left, top, right, bottom = inside(box, *image.size)
        x, y = min(round(left * x_scale), small.width - 1), min(round(top * y_scale), small.height - 1)
        frames.append((x, y, max(x, round(right * x_scale - 1)), max(y, round(bottom * y_scale - 1))))
    framed = Image.blend(Image.new("RGB", small.size, "white"), small, DIMMED)
    for left, top, right, bottom in frames:
        framed.paste(small.crop((left, top, right + 1, bottom + 1)), (left, top))
    draw = ImageDraw.Draw(framed)
    for i, frame in enumerate(frames):
        draw.rectangle(frame, outline=FRAME_COLORS[i % len(FRAME_COLORS)], width=2)
    return framed


# --- Layout


def draw_sheet(cards: list[Card], title: str) -> Image.Image:
    """Lay out cards in rows below a title."""
    columns = min(COLUMNS if len(cards) > FEW else FEW_COLUMNS, len(cards))
    rows, head = -(-len(cards) // columns), 3 * FONT
    size = columns * (CARD[0] + GAP) + GAP, rows * (CARD[1] + GAP) + GAP + head
    sheet = Image.new("RGB", size, "white")
    draw_text(sheet, (GAP, GAP + head // 2 - 4), title, size[0] - 2 * GAP, TEXT, FONT + 6)
    for i, card in enumerate(cards):
        draw_card(sheet, card, GAP + i % columns * (CARD[0] + GAP), GAP + head + i // columns * (CARD[1] + GAP))
    return sheet


def draw_card(sheet: Image.Image, card: Card, left: int, top: int) -> None:
    """Draw a card with its upper left corner at (left, top)."""
    draw = ImageDraw.Draw(sheet)
    draw.rounded_rectangle([left, top, left + CARD[0] - 1, top + CARD[1] - 1], radius=8, fill=CARD_COLOR)
    left, top = left + PAD, top + PAD
    sheet.paste(card.before, (left + (CELL - card.before.width) // 2, top + (CELL - card.before.height) // 2))
    x, y = left + CELL + ARROW // 2, top + CELL // 2
    draw.polygon([(x - 5, y - 7), (x + 6, y), (x - 5, y + 7)], fill=DETAILS)
    draw_parts(sheet, card.after, left + CELL + ARROW, top)
    lines = (card.name, TEXT), (card.caption, TEXT), (card.details, DETAILS), (card.remark, REMARK)
    for i, (text, color) in enumerate(lines):
        middle = top + CELL + PAD - 2 + i * LINE + LINE // 2
        draw_text(sheet, (left, middle), text, CARD[0] - 2 * PAD, color)


def draw_parts(sheet: Image.Image, parts: list[Image.Image], left: int, top: int) -> None:
    """Draw the parts as a grid in a square of CELL pixels; two or more get the colors of their frames."""
    draw, side = ImageDraw.Draw(sheet), math.ceil(math.sqrt(len(parts)))
    rows, step = -(-len(parts) // side), CELL // side
    top += (CELL - rows * step) // 2
    for i, part in enumerate(parts):
        x = left + i % side * step + (step - part.width) // 2
        y = top + i // side * step + (step - part.height) // 2
        sheet.paste(part, (x, y))
        if len(parts) > 1:
            box = [x - 2, y - 2, x + part.width + 1, y + part.height + 1]
            draw.rectangle(box, outline=FRAME_COLORS[i % len(FRAME_COLORS)], width=2)


def draw_text(
    sheet: Image.Image, left_middle: tuple[int, int], text: str, width: int, color: str, size: int = FONT
) -> None:
    """Write one line; if it is wider than `width`, an ellipsis replaces its middle."""
    text = printable(text)
    font = load_font(size, text)
    kept = len(text)
    while font.getlength(text) > width and kept > 8:
        kept -= 2
        text = text[: kept // 2] + "..." + text[-(kept // 2) :]
    ImageDraw.Draw(sheet).text(left_middle, text, fill=color, font=font, anchor="lm")
