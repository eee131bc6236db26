"""Write the page of a comparison (curves, a table, images) as a self-contained HTML file, as PNG and as CSV."""

import base64
import io
import textwrap
from pathlib import Path

import jinja2
from PIL import Image, ImageDraw

from examples.comparison.curves import color_groups, draw_curves
from examples.comparison.previews import Previews, open_images
from examples.comparison.results import Result
from examples.comparison.table import Group, build_table, group_runs, write_csv
from hypernet.training.loss_plot import render
from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.image_grid import labeled_grid, load_font

TEMPLATE = Path(__file__).with_name("page.html")
IMAGES_NOTE = (
    "Every column has the same noise and, but for the runs' names, the same prompts. "
    "The columns are in the order of the runs, not of their loss."
)
MARGIN, FONT_SIZE, GAP, IMAGE_SIZE = 40, 22, 36, 224  # in pixels, of compare.png


def write_page(results: list[Result], previews: Previews | None, folder: Path, title: str) -> list[Path]:
    """Write compare.html, compare.png and compare.csv and return their paths. `results` are sorted, best first."""
    groups = group_runs(results)
    color_groups(groups)
    headings, rows = build_table(groups)
    curves = render(lambda: draw_curves(groups))
    html, png, table = (folder / f"compare.{suffix}" for suffix in ("html", "png", "csv"))
    note = describe_order(results)
    with atomic_write(html) as temporary:
        temporary.write_text(render_html(title, note, headings, rows, curves, previews, groups), encoding="utf-8")
    with atomic_write(png) as temporary:
        draw_page(title, note, headings, rows, curves, previews).save(temporary, format="PNG")
    write_csv(results, table)
    return [html, png, table]


def describe_order(results: list[Result]) -> str:
    """Return the line below the title: by what the runs are sorted."""
    bases = sorted({f"{result.val_loss_base:.4f}" for result in results if result.val_loss_base is not None})
    if not bases:
        return "Sorted by training loss, which says little: no run has validation images (--validation_split)."
    return f"Sorted by validation loss (lower is better); the base model alone has {' or '.join(bases)}."


def render_html(
    title: str,
    note: str,
    headings: list[str],
    rows: list[list[str]],
    curves: Image.Image,
    previews: Previews | None,
    groups: list[Group],
) -> str:
    """Fill in page.html, with all images embedded."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    colors = ["rgb({}, {}, {})".format(*(round(255 * channel) for channel in group.color[:3])) for group in groups]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        note=note,
        headings=headings,
        rows=list(zip(colors, rows)),
        curves=_data_url(curves),
        previews=previews,
        images_note=IMAGES_NOTE,
        images=previews and [[_data_url(image) for image in row] for row in open_images(previews)],
    )


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw_page(
    title: str,
    note: str,
    headings: list[str],
    rows: list[list[str]],
    curves: Image.Image,
    previews: Previews | None,
) -> Image.Image:
    """Draw the same page as one image."""
    parts = [_draw_text(title, 2 * FONT_SIZE), _draw_text(note, FONT_SIZE), curves, _draw_table(headings, rows)]
    if previews is not None:
        parts.append(_draw_text(IMAGES_NOTE, FONT_SIZE))
        parts.append(labeled_grid(open_images(previews, IMAGE_SIZE), previews.rows, previews.columns))
    width = max(part.width for part in parts) + 2 * MARGIN
    page = Image.new("RGB", (width, sum(part.height + GAP for part in parts) + 2 * MARGIN - GAP), "white")
    top = MARGIN
    for part in parts:
        page.paste(part, (MARGIN, top))
        top += part.height + GAP
    return page


def _draw_text(text: str, size: int) -> Image.Image:
    font = load_font(size, text)
    image = Image.new("RGB", (round(font.getlength(text)) + 2, round(1.3 * size)), "white")
    ImageDraw.Draw(image).text((0, 0), text, fill="black", font=font)
    return image


def _draw_table(headings: list[str], rows: list[list[str]]) -> Image.Image:
    lines = [headings, *([textwrap.shorten(text, 70, placeholder=" …") for text in row] for row in rows)]
    font = load_font(FONT_SIZE, "".join(text for line in lines for text in line))
    widths = [max(font.getlength(line[i]) for line in lines) + 1.5 * FONT_SIZE for i in range(len(headings))]
    height = round(1.7 * FONT_SIZE)
    image = Image.new("RGB", (round(sum(widths)), height * len(lines)), "white")
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        x, y = 0.0, number * height
        for text, width in zip(line, widths):
            draw.text((x, y + height / 2), text, fill="black" if number else "dimgray", font=font, anchor="lm")
            x += width
        draw.line((0, y + height - 1, image.width, y + height - 1), fill=(220, 220, 220) if number else "gray", width=2)
    return image
