"""Lay pictures out in rows and columns with labels, for people to look at."""

import dataclasses
import textwrap

from PIL import Image, ImageDraw, ImageFont

LATIN = ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "arial.ttf", "Arial.ttf")
EAST_ASIAN = ("NotoSansCJK-Regular.ttc", "msgothic.ttc", "msyh.ttc", "Hiragino Sans GB.ttc", "wqy-zenhei.ttc")

MOST_LINES = 6  # of a label


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where things stand on a sheet, in pixels."""

    font: ImageFont.ImageFont
    line: float  # from one line of a text to the next
    left: int  # of the first picture
    top: int
    gap: int  # right of and below every picture
    row_labels: tuple[int, str]  # their x, and what Pillow aligns there ("lm": their left ends)
    heading: int = 0  # height above the columns' labels


def labeled_grid(rows: list[list[Image.Image]], row_labels, column_labels, caption: str = "") -> Image.Image:
    """Pictures of one size on white; labels are wrapped to a picture's width, the caption on top to the sheet's.

    One row may go without a label: `row_labels` is then [""].
    """
    width = rows[0][0].width
    size = min(32, max(12, width // 14))
    gap, line = max(2, size // 4), round(1.3 * size)
    font = load_font(size, "".join([*row_labels, *column_labels, caption]))
    above = [wrap(label, font, width) for label in column_labels]
    beside = [wrap(label, font, width) for label in row_labels]
    left = max(font.getlength(text) for label in beside for text in label)
    left = round(left) + 2 * size if left else gap
    caption_lines = wrap(caption, font, len(rows[0]) * (width + gap) - gap) if caption else []
    heading = len(caption_lines) * line + size // 2 if caption else 0
    top = heading + max(map(len, above)) * line + size
    layout = Layout(font, line, left, top, gap, (left - size, "rm"), heading)
    return compose_grid(rows, beside, above, layout, caption_lines)


def compose_grid(rows: list[list[Image.Image]], row_labels, column_labels, layout: Layout, caption=()) -> Image.Image:
    """Pictures of one size on white, each label in the middle of its row's or column's side.

    Args:
        row_labels, column_labels, caption: lines; a list of them for each label.
    """
    (width, height), gap = rows[0][0].size, layout.gap
    columns = [layout.left + column * (width + gap) for column in range(len(rows[0]) + 1)]
    tops = [layout.top + row * (height + gap) for row in range(len(rows) + 1)]
    sheet = Image.new("RGB", (columns[-1], tops[-1]), "white")
    draw = ImageDraw.Draw(sheet)

    def write(lines, x, middle, anchor, fill="black"):
        for i, text in enumerate(lines):
            y = middle + (i - (len(lines) - 1) / 2) * layout.line
            draw.text((x, y), text, fill=fill, font=layout.font, anchor=anchor)

    write(caption, layout.left, layout.font.size // 2 + len(caption) * layout.line / 2, "lm", "dimgray")
    for x, label in zip(columns, column_labels):
        write(label, x + width // 2, (layout.heading + layout.top) / 2, "mm")
    for y, label, images in zip(tops, row_labels, rows):
        write(label, layout.row_labels[0], y + height // 2, layout.row_labels[1])
        for x, image in zip(columns, images):
            sheet.paste(image, (x, y))
    return sheet


def wrap(text: str, font, width: float) -> list[str]:
    """The text in lines of at most `width` pixels, broken at spaces, or after signs, where it can be; what is over is cut
    off."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
        while font.getlength(lines[-1]) > width and len(lines[-1]) > 1:
            fitting = next(
                n for n in range(len(lines[-1]) - 1, 0, -1) if n == 1 or font.getlength(lines[-1][:n]) <= width
            )
            place = _after_sign(lines[-1][:fitting]) or fitting
            lines[-1:] = [lines[-1][:place], lines[-1][place:]]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES - 1 :] = [lines[MOST_LINES - 1][:-1] + "…"]
    return lines


def _after_sign(text: str) -> int:
    """The place after its last comma, or else its last sign of another kind; 0 if it has none."""
    return text.rfind(",") + 1 or max(text.rfind(sign) for sign in "=_-/") + 1


def load_font(size: int, text: str = ""):
    """A font of the system at `size` pixels, one with Chinese and Japanese if the text needs it; else Pillow's own.

    (Pillow's own has English letters only.)
    """
    if text.isascii():
        return ImageFont.load_default(size)
    for name in (*EAST_ASIAN, *LATIN) if any(letter >= "\u2e80" for letter in text) else LATIN:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def preview_grid(rows: list[list[Image.Image]], row_labels: list[str], column_labels: list[str]) -> Image.Image:
    """A sheet whose margins are the same whatever the labels say, so that those of a run lie upon each other."""
    size = max(11, rows[0][0].height // 18)
    font = load_font(size, "".join([*row_labels, *column_labels]))
    line, gap = font.getbbox("A")[3] + 4, max(2, rows[0][0].height // 64)
    layout = Layout(font, line, left=10 * size, top=2 * size, gap=gap, row_labels=(size // 2, "lm"))
    beside = [textwrap.wrap(label, 16)[:MOST_LINES] for label in row_labels]
    return compose_grid(rows, beside, [[label] for label in column_labels], layout)
