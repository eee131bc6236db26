"""One page about several runs: curves, a table, pictures; as HTML that needs nothing beside it, as PNG and as CSV."""

import base64
import io
import textwrap
from pathlib import Path

import jinja2
from PIL import Image, ImageDraw

from examples.comparison.curves import draw_curves
from examples.comparison.results import Previews, Result, open_pictures
from examples.comparison.table import group_runs, table, write_csv
from hypernet.training.loss_plot import render
from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.image_grid import labeled_grid, load_font

TEMPLATE = Path(__file__).with_name("page.html")
PICTURES = (
    "The same prompts from the same noise, in the order in which the runs were given; the table has the best first."
)
MARGIN, FONT, GAP, PICTURE = 40, 22, 36, 224  # pixels of the PNG; the last is a picture's width


def write_page(results: list[Result], previews: Previews | None, folder: Path, title: str) -> list[Path]:
    """Write compare.html, compare.png and compare.csv; `results` come with the best first."""
    groups = group_runs(results)
    headings, rows = table(groups)
    curves = render(lambda: draw_curves(groups))
    paths = [folder / "compare.html", folder / "compare.png", folder / "compare.csv"]
    note = describe(results)
    with atomic_write(paths[0]) as temporary:
        temporary.write_text(write_html(title, note, headings, rows, curves, previews, groups), encoding="utf-8")
    with atomic_write(paths[1]) as temporary:
        draw_page(title, note, headings, rows, curves, previews).save(temporary, format="PNG")
    write_csv(results, paths[2])
    return paths


def describe(results: list[Result]) -> str:
    bases = {f"{result.val_loss_base:.4f}" for result in results if result.val_loss_base is not None}
    if not bases:
        return "Sorted by training loss, which says little: no run has held-out images (--validation_split)."
    return f"Sorted by held-out loss, lower is better; without a hypernetwork it is {' or '.join(sorted(bases))}."


def write_html(title, note, headings, rows, curves, previews: Previews | None, groups) -> str:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pictures = previews and [[_as_url(image) for image in row] for row in open_pictures(previews)]
    colors = ["rgb({}, {}, {})".format(*(round(255 * part) for part in group.color[:3])) for group in groups]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        note=note,
        headings=headings,
        rows=list(zip(colors, rows)),
        curves=_as_url(curves),
        previews=previews,
        about_pictures=PICTURES,
        pictures=pictures,
    )


def _as_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw_page(title, note, headings, rows, curves, previews: Previews | None) -> Image.Image:
    """The same as one picture."""
    parts = [_draw_text(title, 2 * FONT), _draw_text(note, FONT), curves, _draw_table(headings, rows)]
    if previews is not None:
        parts.append(_draw_text(PICTURES, FONT))
        parts.append(labeled_grid(open_pictures(previews, PICTURE), previews.rows, previews.columns))
    width = max(part.width for part in parts) + 2 * MARGIN
    page = Image.new("RGB", (width, sum(part.height + GAP for part in parts) + 2 * MARGIN - GAP), "white")
    top = MARGIN
    for part in parts:
        page.paste(part, (MARGIN, top))
        top += part.height + GAP
    return page


def _draw_text(text, size) -> Image.Image:
    font = load_font(size, text)
    image = Image.new("RGB", (round(font.getlength(text)) + 2, round(1.3 * size)), "white")
    ImageDraw.Draw(image).text((0, 0), text, fill="black", font=font)
    return image


def _draw_table(headings, rows) -> Image.Image:
    lines = [headings, *([textwrap.shorten(text, 70, placeholder=" …") for text in row] for row in rows)]
    font = load_font(FONT, "".join(text for line in lines for text in line))
    widths = [max(font.getlength(line[i]) for line in lines) + 1.5 * FONT for i in range(len(headings))]
    height = round(1.7 * FONT)
    image = Image.new("RGB", (round(sum(widths)), height * len(lines)), "white")
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        x, y = 0.0, number * height
        for text, width in zip(line, widths):
            draw.text((x, y + height / 2), text, fill="black" if number else "dimgray", font=font, anchor="lm")
            x += width
        draw.line((0, y + height - 1, image.width, y + height - 1), fill=(220, 220, 220) if number else "gray", width=2)
    return image
