"""Lay pictures out in rows and columns with labels, for people to look at."""

from PIL import Image, ImageDraw

from hypernet.fonts import load_font

MOST_LINES = 6  # of a label


def labelled_sheet(rows: list[list[Image.Image]], row_labels, column_labels, caption: str = "") -> Image.Image:
    """Pictures of one size on white; labels are wrapped to a picture's width, the caption on top to the sheet's.

    One row may go without a label: `row_labels` is then [""].
    """
    width, height = rows[0][0].size
    size = min(32, max(12, width // 14))
    gap, line = max(2, size // 4), round(1.3 * size)
    font = load_font(size, "".join([*row_labels, *column_labels, caption]))
    above = [wrap(label, font, width) for label in column_labels]
    beside = [wrap(label, font, width) for label in row_labels]
    left = max(font.getlength(text) for label in beside for text in label)
    left = round(left) + 2 * size if left else gap
    total = left + len(rows[0]) * (width + gap)
    heading = wrap(caption, font, total - left - gap)
    top = len(heading) * line + size // 2 if caption else 0
    first = top + max(map(len, above)) * line + size

    sheet = Image.new("RGB", (total, first + len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(sheet)

    def write(lines, x, middle, anchor, fill="black"):
        for i, text in enumerate(lines):
            draw.text((x, middle + (i - (len(lines) - 1) / 2) * line), text, fill=fill, font=font, anchor=anchor)

    if caption:
        write(heading, left, size // 2 + len(heading) * line / 2, "lm", "dimgray")
    for column, label in enumerate(above):
        write(label, left + column * (width + gap) + width // 2, (top + first) / 2, "mm")
    for row, images in enumerate(rows):
        y = first + row * (height + gap)
        write(beside[row], left - size, y + height // 2, "rm")
        for column, image in enumerate(images):
            sheet.paste(image, (left + column * (width + gap), y))
    return sheet


def wrap(text: str, font, width: float) -> list[str]:
    """The text in lines of at most `width` pixels, broken at spaces where it can be; what is over is cut off."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
        while font.getlength(lines[-1]) > width and len(lines[-1]) > 1:
            fitting = next(
                n for n in range(len(lines[-1]) - 1, 0, -1) if n == 1 or font.getlength(lines[-1][:n]) <= width
            )
            lines[-1:] = [lines[-1][:fitting], lines[-1][fitting:]]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES - 1 :] = [lines[MOST_LINES - 1][:-1] + "…"]
    return lines
