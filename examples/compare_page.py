"""One page about several runs: curves, a table, pictures; as HTML that needs nothing beside it, as PNG and as CSV."""

import base64
import csv
import dataclasses
import io
import math
import statistics
import textwrap
from pathlib import Path

import jinja2
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from PIL import Image, ImageDraw

from compare_grid import shown
from compare_results import Previews, Result, differing, open_pictures, short
from hypernet.fonts import load_font
from hypernet.replacing import replacing
from hypernet.sheet import labelled_sheet

TEMPLATE = Path(__file__).with_name("compare_page.html")
PICTURES = (
    "The same prompts from the same noise, in the order in which the runs were given; the table has the best first."
)
MOST_NAMED = 14  # curves in the legend
MARGIN, FONT, GAP, PICTURE = 40, 22, 36, 224  # pixels of the PNG; the last is a picture's width


@dataclasses.dataclass
class Group:
    """Runs that differ in nothing but the seed."""

    values: dict  # of the options that differ among the groups
    results: list[Result]
    color: tuple = (0.5, 0.5, 0.5)

    @property
    def name(self) -> str:
        told = ", ".join(f"{key} {value}" for key, value in self.values.items())
        return told if told and self.results[0].run.options else self.runs

    @property
    def runs(self) -> str:
        return ", ".join(result.run.name for result in self.results)

    @property
    def problem(self) -> str | None:
        return next((result.problem for result in self.results if result.problem), None)

    def of(self, name: str) -> list:
        """What those of its runs have that have it."""
        return [value for value in (getattr(result, name) for result in self.results) if value is not None]


def group_runs(results: list[Result]) -> list[Group]:
    """The best first, by the mean held-out loss of each group's runs."""
    keys, groups = [key for key in differing(results) if key != "seed"], {}
    for result in results:
        values = {key: short(result.options.get(key)) for key in keys}
        whole = tuple(shown(result.options.get(key)) for key in keys)  # what is alike when shortened is not the same
        groups.setdefault(whole or (result.run.name,), Group(values, [])).results.append(result)
    if not keys and len(results) > 1 and len({result.options.get("seed") for result in results}) == len(results):
        groups = {"all": Group({}, results)}

    def rank(group):
        ranks = [result.rank for result in group.results]
        return [statistics.fmean(values) for values in zip(*ranks)]

    return sorted(groups.values(), key=rank)


# --- The table


def table(groups: list[Group]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row of texts for each group; columns that no run has anything to say in are left out."""
    columns = {
        "held-out loss": [spread(group.of("val_loss"), "{:.4f}") for group in groups],
        "best": [spread(group.of("best_val_loss"), "{:.4f}") for group in groups],
        "at step": [spread(group.of("best_step"), "{:.0f}") for group in groups],
        "reached at step": [_reached(group) for group in groups],
        "training loss": [spread(group.of("last_loss"), "{:.4f}") for group in groups],
        "images / s": [spread(group.of("images_per_second"), "{:.2f}") for group in groups],
        "memory, GiB": [spread(group.of("peak_memory_gib"), "{:.2f}") for group in groups],
        "file, MB": [spread([size / 1e6 for size in group.of("file_bytes")], "{:.2f}") for group in groups],
        "guard went back": [spread(group.of("guard_returns"), "{:.1f}") for group in groups],
        "": [group.problem or "" for group in groups],
    }
    if not any(sum(group.of("guard_returns")) for group in groups):
        del columns["guard went back"]
    columns = {name: texts for name, texts in columns.items() if any(texts)}
    several = any(len(group.results) > 1 for group in groups)
    named = (
        not groups[0].values or not groups[0].results[0].run.options
    )  # those that were there have names of their own
    rows = []
    for i, group in enumerate(groups):
        row = [*([group.runs] * named), *group.values.values(), *([str(len(group.results))] * several)]
        rows.append([*row, *(texts[i] for texts in columns.values())])
    return [*(["run"] * named), *groups[0].values, *(["runs"] * several), *columns], rows


def _reached(group: Group) -> str:
    """At which step the held-out loss was as low as asked, if all its runs came there; else how many did."""
    reached = group.of("reached")
    return (
        f"{len(reached)} of {len(group.results)}"
        if 0 < len(reached) < len(group.results)
        else spread(reached, "{:.0f}")
    )


def spread(values: list, form: str) -> str:
    """The value, or the mean of several and their standard deviation; those that are not finite are counted apart."""
    finite = [value for value in values if math.isfinite(value)]
    lost = f"{len(values) - len(finite)} not finite" if len(finite) < len(values) else ""
    if not finite:
        return lost
    text = form.format(statistics.fmean(finite))
    spread = form.format(statistics.stdev(finite)) if len(finite) > 1 else "0"
    text = f"{text} ± {spread}" if float(spread) else text
    return f"{text}, {lost}" if lost else text


def write_csv(results: list[Result], path: Path):
    """Every run with its options and figures."""
    keys = differing(results)
    names = ["step", "val_loss", "val_loss_base", "best_val_loss", "best_step", "reached", "last_loss"]
    names += ["images_per_second", "peak_memory_gib", "file_bytes", "guard_returns", "problem"]
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *keys, *names])
        for result in results:
            options = [shown(result.options.get(key)) for key in keys]
            writer.writerow([result.run.name, *options, *(getattr(result, name) for name in names)])


# --- The curves


def draw_curves(groups: list[Group]) -> Image.Image:
    """Held-out loss and training loss over the steps, a colour for each group, the best in the strongest."""
    _color(groups)
    held_out = any(result.held_out for group in groups for result in group.results)
    figure = Figure(
        figsize=(15 if held_out else 9, 5.2 + 0.11 * min(len(groups), MOST_NAMED)), dpi=110, layout="constrained"
    )
    axes = figure.subplots(1, 2 if held_out else 1, squeeze=False)[0]
    smoothed = any(_window(result.losses) > 1 for group in groups for result in group.results)
    panels = [("held-out loss", "held_out", 1)] * held_out
    panels.append(("training loss, smoothed" if smoothed else "training loss", "losses", None))
    for axis, (title, name, window) in zip(axes, panels):
        for number, group in reversed(list(enumerate(groups))):
            for i, result in enumerate(group.results):
                steps, losses = _smooth(getattr(result, name), window)
                label = _label(group.name) if i == 0 and number < MOST_NAMED else None
                how = {"color": group.color, "linewidth": 1.6, "marker": "." if name == "held_out" else None}
                axis.plot(steps, losses, label=label, zorder=3 - number / len(groups), **how)
        axis.set(title=title, xlabel="step")
        axis.grid(color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_yscale("log")
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_formatter(ScalarFormatter())
        _limit(axis, groups, name)
    base = next((r.val_loss_base for group in groups for r in group.results if r.val_loss_base), None)
    if base is not None:
        axes[0].axhline(base, color="0.5", linestyle="--", linewidth=1, label="without a hypernetwork", zorder=1)
    handles, labels = axes[0].get_legend_handles_labels()
    curves = len(labels) - (base is not None)  # they were drawn from the last to the best
    more = f"the best {MOST_NAMED} of {len(groups)}" if len(groups) > MOST_NAMED else None
    figure.legend(
        [*handles[:curves][::-1], *handles[curves:]],
        [*labels[:curves][::-1], *labels[curves:]],
        loc="outside lower left",
        ncols=2,
        frameon=False,
        title=more,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def _label(name):
    """Fit for a legend, in which matplotlib takes $ for mathematics and hides what begins with an underscore."""
    return " " + textwrap.shorten(name, 80).replace("$", r"\$")


def _color(groups):
    few = len(groups) <= 10
    for number, group in enumerate(groups):
        group.color = colormaps["tab10"](number) if few else colormaps["viridis"](number / len(groups))


def _smooth(pairs, window):
    """Steps and means over a window of the values; `_window` is how wide if it is None."""
    window = window or _window(pairs)
    steps, values = [step for step, _ in pairs], [value for _, value in pairs]
    means = [statistics.fmean(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))]
    return steps, means


def _window(pairs) -> int:
    return max(1, len(pairs) // 8)


def _limit(axis, groups, name):
    """Let what has run away not flatten all others."""
    values = [value for group in groups for result in group.results for _, value in getattr(result, name)]
    values = [value for value in values if math.isfinite(value) and value > 0]
    if values:
        axis.set_ylim(0.9 * min(values), min(1.1 * max(values), 20 * min(values)))


# --- The pages


def write_page(results: list[Result], previews: Previews | None, folder: Path, title: str) -> list[Path]:
    """Write compare.html, compare.png and compare.csv; `results` come with the best first."""
    groups = group_runs(results)
    headings, rows = table(groups)
    curves = draw_curves(groups)
    paths = [folder / "compare.html", folder / "compare.png", folder / "compare.csv"]
    note = describe(results)
    with replacing(paths[0]) as temporary:
        temporary.write_text(write_html(title, note, headings, rows, curves, previews, groups), encoding="utf-8")
    with replacing(paths[1]) as temporary:
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
        parts.append(labelled_sheet(open_pictures(previews, PICTURE), previews.rows, previews.columns))
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
