"""Lay images out in labeled rows and columns."""

import dataclasses
import json
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from hypernet.utils.atomic_files import atomic_write

LATIN = ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "arial.ttf", "Arial.ttf")
EAST_ASIAN = ("NotoSansCJK-Regular.ttc", "msgothic.ttc", "msyh.ttc", "Hiragino Sans GB.ttc", "wqy-zenhei.ttc")
MAX_LINES = 6  # per label
CELLS = "cells"  # key in a grid's `info`, and of the text in the PNG of a preview grid

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Lines = Sequence[str]  # a wrapped label


@dataclasses.dataclass(frozen=True)
class Layout:
    """Positions and sizes on a grid, in pixels."""

    font: Font
    line: float  # height of a line of text
    left: int  # of the first column of images
    top: int  # of the first row of images
    gap: int  # to the right of every image and below it
    row_labels: tuple[int, str]  # x, and the Pillow anchor placed there ("lm": left end, "rm": right end)
    heading: int = 0  # height of the caption above the column labels


def labeled_grid(
    rows: list[list[Image.Image]], row_labels: Sequence[str], column_labels: Sequence[str], caption: str = ""
) -> Image.Image:
    """Return images of one size on white, with labels beside the rows and above the columns.

    Labels wrap at the width of an image, the caption at the width of the grid.

    Args:
        rows: the images.
        row_labels: a label for each row; [""] for a single unlabeled row.
        column_labels: a label for each column.
        caption: text above the grid.
    """
    width = rows[0][0].width
    size = min(32, max(12, width // 14))
    gap, line = max(2, size // 4), round(1.3 * size)
    font = load_font(size, "".join([*row_labels, *column_labels, caption]))
    row_lines = [wrap(label, font, width) for label in row_labels]
    column_lines = [wrap(label, font, width) for label in column_labels]
    longest = max(font.getlength(text) for lines in row_lines for text in lines)
    left = round(longest) + 2 * size if longest else gap
    caption_lines = wrap(caption, font, len(rows[0]) * (width + gap) - gap) if caption else []
    heading = len(caption_lines) * line + size // 2 if caption else 0
    top = heading + max(map(len, column_lines)) * line + size
    layout = Layout(font, line, left, top, gap, (left - size, "rm"), heading)
    return compose_grid(rows, row_lines, column_lines, layout, caption_lines)


def compose_grid(
    rows: list[list[Image.Image]],
    row_labels: Sequence[Lines],
    column_labels: Sequence[Lines],
    layout: Layout,
    caption: Lines = (),
) -> Image.Image:
    """Return images on white, each label centered on its row or column. Labels are already wrapped.

    The images of a row have one size. Where that differs between rows, they are centered in their columns.

    The grid's `info` has the positions of the images: `CELLS` -> rows of [left, top, width, height].
    """
    width, gap, tops = max(row[0].width for row in rows), layout.gap, [layout.top]
    columns = [layout.left + column * (width + gap) for column in range(len(rows[0]) + 1)]
    for row in rows:
        tops.append(tops[-1] + row[0].height + gap)
    grid = Image.new("RGB", (columns[-1], tops[-1]), "white")
    draw = ImageDraw.Draw(grid)

    def write(lines: Lines, x: float, middle: float, anchor: str, fill: str = "black") -> None:
        for i, text in enumerate(lines):
            y = middle + (i - (len(lines) - 1) / 2) * layout.line
            draw.text((x, y), text, fill=fill, font=layout.font, anchor=anchor)

    cells: list[list[list[int]]] = []
    write(caption, layout.left, layout.heading - len(caption) * layout.line / 2, "lm", "dimgray")
    for x, label in zip(columns, column_labels):
        write(label, x + width // 2, (layout.heading + layout.top) / 2, "mm")
    for y, label, images in zip(tops, row_labels, rows):
        write(label, layout.row_labels[0], y + images[0].height // 2, layout.row_labels[1])
        places = [x + (width - image.width) // 2 for x, image in zip(columns, images)]
        cells.append([[x, y, *image.size] for x, image in zip(places, images)])
        for x, image in zip(places, images):
            grid.paste(image, (x, y))
    grid.info[CELLS] = cells
    return grid


def wrap(text: str, font: Font, width: float) -> list[str]:
    """Wrap text to at most `MAX_LINES` lines of at most `width` pixels; cut off the rest.

    Lines break at spaces. A word wider than a line breaks after a comma or one of "=_-/" if it has one.
    """
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
        while font.getlength(lines[-1]) > width and len(lines[-1]) > 1:
            lengths = range(len(lines[-1]) - 1, 0, -1)
            fitting = next(n for n in lengths if n == 1 or font.getlength(lines[-1][:n]) <= width)
            end = _after_sign(lines[-1][:fitting]) or fitting
            lines[-1:] = [lines[-1][:end], lines[-1][end:]]
    if len(lines) > MAX_LINES:
        lines[MAX_LINES - 1 :] = [lines[MAX_LINES - 1][:-1] + "…"]
    return lines


def _after_sign(text: str) -> int:
    """Return the index after the last comma, or else after the last of "=_-/"; 0 if there is none."""
    return text.rfind(",") + 1 or max(text.rfind(sign) for sign in "=_-/") + 1


def load_font(size: int, text: str = "") -> Font:
    """Return a font of `size` pixels that has glyphs for `text`.

    ASCII uses Pillow's own font. Other text uses a system font, an East Asian one if needed, or Pillow's if none is
    installed.
    """
    if text.isascii():
        return ImageFont.load_default(size)
    for name in (*EAST_ASIAN, *LATIN) if any(letter >= "\u2e80" for letter in text) else LATIN:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def save_png(image: Image.Image, path: Path) -> None:
    """Write an image completely or not at all; a preview grid with the `CELLS` of its `info`."""
    text = PngInfo()
    if isinstance(cells := image.info.get(CELLS), str):
        text.add_text(CELLS, cells)
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=text)


def preview_grid(rows: list[list[Image.Image]], row_labels: list[str], column_labels: list[str]) -> Image.Image:
    """Return a labeled grid whose margins do not depend on the labels, so that all grids of a run line up.

    Its `info` has, as `CELLS`, the JSON of {"cells": those of `compose_grid`, "rows": labels, "columns": labels}.
    """
    heights = [row[0].height for row in rows]
    typical = statistics.median_low(heights)
    size = max(11, typical // 18)
    font = load_font(size, "".join([*row_labels, *column_labels]))
    line, gap = font.getbbox("A")[3] + 4, max(2, typical // 64)
    layout = Layout(font, line, left=10 * size, top=2 * size, gap=gap, row_labels=(size // 2, "lm"))
    limits = [MAX_LINES if height >= typical else max(1, int(height // line)) for height in heights]
    row_lines = [textwrap.wrap(label, 16)[:limit] for label, limit in zip(row_labels, limits)]
    grid = compose_grid(rows, row_lines, [[label] for label in column_labels], layout)
    grid.info[CELLS] = json.dumps({"cells": grid.info[CELLS], "rows": row_labels, "columns": column_labels})
    return grid
