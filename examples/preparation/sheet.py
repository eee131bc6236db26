"""The sheet of prepare.py: what was taken of each picture, in its frame, and what has become of it."""

import contextlib
import dataclasses
import math
from pathlib import Path

from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from examples.preparation.record import Record, printable
from hypernet.data.captions import read_text
from hypernet.data.image_io import map_in_threads, on_background, read_image
from hypernet.data.image_source import ImageSource
from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.image_grid import load_font

CELL, PAD, GAP, FONT = 208, 12, 16, 14  # pixels: a picture's longer side, inside a card, between cards, letters
ARROW = 28  # pixels between before and after
LINE = FONT + 6
CARD = 2 * CELL + ARROW + 2 * PAD, CELL + 3 * LINE + 3 * PAD - 4  # width and height
COLUMNS, FEW = 5, 12  # of a sheet; one of few pictures has three
SHOWN = 9  # parts of a picture
COLORS = ("#ff8c1a", "#1aa3ff", "#ff3d81", "#35b54a")  # of frames, in turns
CARD_COLOR, TITLE, NAME, WORDS, ODD = "#f3f3f1", "#222222", "#222222", "#6d6d68", "#b3261e"
DIMMED = 0.45  # of what is not taken is left


@dataclasses.dataclass
class Card:
    """One picture on the sheet: before with frames, the parts after, three lines below."""

    before: Image.Image
    after: list[Image.Image]
    name: str
    caption: str
    words: str
    is_odd: bool  # the words are to be seen


def sheet_path(folder: Path) -> Path:
    """Beside the folder, since a picture in it would be trained on."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}_sheet.png")


def write_sheet(args, source: ImageSource, record: Record, jobs, remarks: dict[str, str]):
    """Write it, with remarks on some of the pictures, if it is wanted, unless somebody else's file is in its way; and say so."""
    made = [job for job in jobs if "files" in record.entries[job.source]]
    if not args.sheet_images or not made:
        return
    path = sheet_path(args.DST)
    if path.exists() and not record.sheet:
        print(f"note: {path} is there already, and not of this script; no sheet is written")
        return
    count = min(len(made), args.sheet_images)
    chosen = [made[i * len(made) // count] for i in range(count)]
    with contextlib.closing(
        map_in_threads(lambda job: make_card(args, source, record, job, remarks.get(job.source, "")), chosen)
    ) as cards:
        drawn = [card for card in tqdm(cards, total=len(chosen), desc="Drawing the sheet") if card]
    if not record.sheet:
        record.sheet = True
        record.append({"sheet": True})
    with atomic_write(path) as temporary:
        title = f"{args.DST.resolve().name}: {len(drawn)} of {len(made)} pictures, before and after"
        draw_sheet(drawn, title).save(temporary, "PNG")
    print(f"{path}: before and after, to look at")


def make_card(args, source: ImageSource, record: Record, job, remark: str) -> Card | None:
    """What is shown of a picture; None if it has gone meanwhile."""
    entry, size = record.entries[job.source], "x".join(map(str, record.entries[job.source]["size"]))
    names = [name for name in entry["files"] if name.endswith(".png")][:: 2 if args.flip else 1]
    try:
        before = on_background(read_image(source.read(job.row)), args.background)
        after = [Image.open(args.DST / name) for name in names[:SHOWN]]
        after = [fitted(on_checks(image), *cell_sides(len(after))) for image in after]
    except (ValueError, OSError):
        return None
    words = f"{entry['width']}x{entry['height']} to {f'{len(names)} of ' if len(names) > 1 else ''}{size}"
    words += ", and mirrored" if args.flip else ""
    text = args.DST / Path(names[0]).with_suffix(".txt")
    caption = read_text(text).strip() if text.exists() else job.name_text
    words = f"{words}: {remark}" if remark else words
    return Card(
        framed(before, entry["boxes"]), after, job.source, f"“{' '.join(caption.split())}”", words, bool(remark)
    )


def cell_sides(count: int) -> tuple[int, int]:
    """(width, height) of each part's place after the arrow."""
    side = CELL // math.ceil(math.sqrt(count))
    return (side, side) if count == 1 else (side - 12, side - 12)  # a gap between parts


def fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """As large as fits; a small picture is enlarged, so that all look alike."""
    scale = min(width / image.width, height / image.height)
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)


def on_checks(image: Image.Image) -> Image.Image:
    """An RGB picture; what is transparent shows a chequered ground."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    ground, field = Image.new("RGB", image.size, "white"), max(4, max(image.size) // 16)
    draw = ImageDraw.Draw(ground)
    for top in range(0, image.height, field):
        for left in range(top // field % 2 * field, image.width, 2 * field):
            draw.rectangle([left, top, left + field - 1, top + field - 1], fill="#dcdcdc")
    ground.paste(image, mask=image.getchannel("A"))
    return ground


def framed(image: Image.Image, boxes) -> Image.Image:
    """The picture in the size of a cell, dim where nothing is taken, each part in a frame of its colour."""
    small = fitted(image, CELL, CELL)
    across, down = small.width / image.width, small.height / image.height
    places = [(b[0] * across, b[1] * down, b[2] * across - 1, b[3] * down - 1) for b in boxes]
    shown = Image.blend(Image.new("RGB", small.size, "white"), small, DIMMED)
    for place in places:
        area = [round(place[0]), round(place[1]), round(place[2]) + 1, round(place[3]) + 1]
        shown.paste(small.crop(area), area[:2])
    draw = ImageDraw.Draw(shown)
    for i, place in enumerate(places):
        draw.rectangle([round(side) for side in place], outline=COLORS[i % len(COLORS)], width=2)
    return shown


# --- The sheet


def draw_sheet(cards: list[Card], title: str) -> Image.Image:
    """Cards in rows, below a title."""
    columns = min(COLUMNS if len(cards) > FEW else 3, len(cards))
    rows, head = -(-len(cards) // columns), 3 * FONT
    size = columns * (CARD[0] + GAP) + GAP, rows * (CARD[1] + GAP) + GAP + head
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = load_font(FONT + 6, title)
    draw.text((GAP, GAP + head // 2 - 4), shortened(title, font, size[0] - 2 * GAP), fill=TITLE, font=font, anchor="lm")
    for i, card in enumerate(cards):
        draw_card(sheet, card, GAP + i % columns * (CARD[0] + GAP), GAP + head + i // columns * (CARD[1] + GAP))
    return sheet


def draw_card(sheet: Image.Image, card: Card, left: int, top: int):
    """One card with its upper left corner there."""
    draw = ImageDraw.Draw(sheet)
    draw.rounded_rectangle([left, top, left + CARD[0] - 1, top + CARD[1] - 1], radius=8, fill=CARD_COLOR)
    left, top = left + PAD, top + PAD
    sheet.paste(card.before, (left + (CELL - card.before.width) // 2, top + (CELL - card.before.height) // 2))
    x, y = left + CELL + ARROW // 2, top + CELL // 2
    draw.polygon([(x - 5, y - 7), (x + 6, y), (x - 5, y + 7)], fill=WORDS)
    draw_parts(sheet, card.after, left + CELL + ARROW, top)
    below = top + CELL + PAD - 2
    lines = (card.name, NAME), (card.caption, NAME), (card.words, ODD if card.is_odd else WORDS)
    for line, (text, color) in enumerate(lines):
        font = load_font(FONT, text)
        text = shortened(text, font, CARD[0] - 2 * PAD)
        draw.text((left, below + line * LINE + LINE // 2), text, fill=color, font=font, anchor="lm")


def draw_parts(sheet: Image.Image, parts: list[Image.Image], left: int, top: int):
    """The parts in a square of CELL pixels, in the middle of their places; of several each has a line of its frame's
    colour below."""
    draw, side = ImageDraw.Draw(sheet), math.ceil(math.sqrt(len(parts)))
    rows, step = -(-len(parts) // side), CELL // side
    top += (CELL - rows * step) // 2
    for i, part in enumerate(parts):
        x = left + i % side * step + (step - part.width) // 2
        y = top + i // side * step + (step - part.height) // 2
        sheet.paste(part, (x, y))
        if len(parts) > 1:
            box = [x - 2, y - 2, x + part.width + 1, y + part.height + 1]
            draw.rectangle(box, outline=COLORS[i % len(COLORS)], width=2)


def shortened(text: str, font, width: float) -> str:
    """The text, if need be without its middle."""
    text = printable(text)
    kept = len(text)
    while font.getlength(text) > width and kept > 8:
        kept -= 2
        text = text[: kept // 2] + "…" + text[-(kept // 2) :]
    return text
