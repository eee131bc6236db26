"""Write the page of a comparison (plots, a table, images) as a self-contained HTML file, as PNG and as CSV."""

import base64
import io
import textwrap
from pathlib import Path

import jinja2
from PIL import Image, ImageDraw

from examples.comparison.curves import color_groups, draw_curves
from examples.comparison.previews import Previews, open_images
from examples.comparison.ranking import Ranking
from examples.comparison.scatter import draw_scatter
from examples.comparison.table import build_table, write_csv
from hypernet.training.loss_plot import render
from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.image_grid import labeled_grid, load_font

TEMPLATE = Path(__file__).with_name("page.html")
IMAGES_NOTE = (
    "Every column has the same noise and, but for the runs' names, the same prompts. "
    "The columns are in the order in which the runs were given."
)
MARGIN, FONT_SIZE, GAP, IMAGE_SIZE = 40, 22, 36, 224  # in pixels, of compare.png
LINE_LENGTH = 140  # characters of the notes in compare.png


def write_page(ranking: Ranking, previews: Previews | None, folder: Path, title: str) -> list[Path]:
    """Write compare.html, compare.png and compare.csv and return their paths."""
    color_groups(ranking.groups)
    plots = {}
    if any(group.has_scores for group in ranking.groups):
        plots["Prompt fidelity over style distance"] = render(lambda: draw_scatter(ranking))
    plots["Validation and training loss over the steps"] = render(lambda: draw_curves(ranking))
    page = Page(title, ranking, plots, previews)
    html, png, table = (folder / f"compare.{suffix}" for suffix in ("html", "png", "csv"))
    with atomic_write(html) as temporary:
        temporary.write_text(page.render_html(), encoding="utf-8")
    with atomic_write(png) as temporary:
        page.draw().save(temporary, format="PNG")
    write_csv(ranking, table)
    return [html, png, table]


class Page:
    """The parts of a page.

    Args:
        plots: by what they show.
    """

    def __init__(self, title: str, ranking: Ranking, plots: dict[str, Image.Image], previews: Previews | None):
        self.title, self.plots, self.previews = title, plots, previews
        self.notes, self.colors = ranking.describe(), [group.color[:3] for group in ranking.groups]
        self.headings, self.rows = build_table(ranking)

    def render_html(self) -> str:
        """Fill in page.html, with all images embedded."""
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        colors = ["rgb({}, {}, {})".format(*(round(255 * channel) for channel in color)) for color in self.colors]
        return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            title=self.title,
            notes=self.notes,
            plots={name: _data_url(plot) for name, plot in self.plots.items()},
            headings=self.headings,
            rows=list(zip(colors, self.rows)),
            previews=self.previews,
            images_note=IMAGES_NOTE,
            images=self.previews and [[_data_url(image) for image in row] for row in open_images(self.previews)],
        )

    def draw(self) -> Image.Image:
        """Draw the same page as one image."""
        lines = [line for note in self.notes for line in textwrap.wrap(note, LINE_LENGTH)]
        parts = [_draw_text([self.title], 2 * FONT_SIZE), _draw_text(lines, FONT_SIZE), *self.plots.values()]
        parts.append(_draw_table(self.headings, self.rows))
        if self.previews is not None:
            parts.append(_draw_text([IMAGES_NOTE], FONT_SIZE))
            images = open_images(self.previews, IMAGE_SIZE)
            parts.append(labeled_grid(images, self.previews.rows, self.previews.columns))
        width = max(part.width for part in parts) + 2 * MARGIN
        page = Image.new("RGB", (width, sum(part.height + GAP for part in parts) + 2 * MARGIN - GAP), "white")
        top = MARGIN
        for part in parts:
            page.paste(part, (MARGIN, top))
            top += part.height + GAP
        return page


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _draw_text(lines: list[str], size: int) -> Image.Image:
    font, height = load_font(size, "".join(lines)), round(1.3 * size)
    image = Image.new("RGB", (round(max(map(font.getlength, lines), default=0)) + 2, height * len(lines) or 1), "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((0, number * height), line, fill="black", font=font)
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
