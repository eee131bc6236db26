"""The tables and the plot of settings.md, from settings.csv."""

import json
import math
import re
import statistics
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from compare_page import spread
from hypernet.replacing import replacing
from settings_time import LORA, read_times, shape

PAGE = Path(__file__).with_name("settings.md")
RATES_PLOT = Path(__file__).with_name("settings_rate.png")
EFFECTS_PLOT = Path(__file__).with_name("settings_effects.png")


def write_page(rows: list[dict], base: dict):
    """Renew what stands between `<!-- NAME -->` and `<!-- end -->` in the page, and the plot.

    `base` are the options of that run of the rates' section with which all other sections are compared.
    """
    text, times = PAGE.read_text(encoding="utf-8"), read_times()
    tables = {
        section: write_table(rows, section, base, times) for section in dict.fromkeys(row["section"] for row in rows)
    }
    for name, table in tables.items():
        text = re.sub(
            rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)",
            lambda m, t=table: f"{m[1]}{t}\n{m[2]}",
            text,
            flags=re.S,
        )
    with replacing(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    draw_rates(rows).savefig(RATES_PLOT)
    draw_effects(rows, base).savefig(EFFECTS_PLOT)
    print(PAGE, RATES_PLOT, EFFECTS_PLOT, sep="\n")


def write_table(rows: list[dict], section: str, base: dict, times: dict[str, float]) -> str:
    """One line for each setting, for each style its figures: mean and deviation of the seeds."""
    mine = sorted((row for row in rows if row["section"] == section), key=_order)
    styles, settings = sorted({row["style"] for row in mine}), {}
    if section not in ("rate", "tags"):  # begin with what the section changes, of the same styles and seeds
        runs = {(row["style"], row["seed"]) for row in mine}
        settings["*as it was*"] = [row for row in _base_rows(rows, base) if (row["style"], row["seed"]) in runs]
    for row in mine:
        settings.setdefault(_label(row), []).append(row)
    head = [f"{style}: held-out loss | half at step | in the style | subject right" for style in styles]
    lines = [f"| setting | {' | '.join(head)} | UNet's step | file, kB |", "| --- " * (3 + 4 * len(styles)) + "|"]
    for label, found in settings.items():
        cells = [cell for style in styles for cell in _cells([row for row in found if row["style"] == style])]
        size = next((f"{int(row['file_bytes']) / 1e3:,.0f}" for row in found if row["file_bytes"]), "")
        lines.append(f"| {label} | {' | '.join(cells)} | {_time(found, times)} | {size} |")
    return "\n".join(lines)


def _base_rows(rows, base) -> list[dict]:
    return [row for row in rows if row["section"] == "rate" and json.loads(row["options"]) == base]


def _order(row) -> list:
    """Rates by their size, all else by the alphabet."""
    options = json.loads(row["options"])
    return [(0.0, str(value)) if key != "learning_rate" else (float(value), "") for key, value in options.items()]


def _label(row) -> str:
    text = ", ".join(f"{key} {value}" for key, value in json.loads(row["options"]).items())
    return f"LoRA of rank {row['rank']}, {text}" if row["rank"] else text


def _cells(rows) -> list[str]:
    halves = [row["half_at_step"] for row in rows]
    reached = [int(half) for half in halves if half]
    half = (
        f"{statistics.fmean(reached):.0f}"
        if reached and len(reached) == len(rows)
        else f"{len(reached)} of {len(rows)}"
    )
    return [
        spread([float(row["val_loss"]) for row in rows if row["val_loss"]], "{:.3f}"),
        half if rows else "",
        *(_mean([float(row[name]) for row in rows if row[name]]) for name in ("style_share", "subject_share")),
    ]


def _time(rows, times) -> str:
    if not rows:
        return ""
    name = LORA if rows[0]["rank"] else shape(json.loads(rows[0]["options"]))
    return f"{times[name]:.2f}" if name in times else ""


def _mean(shares) -> str:
    return f"{statistics.fmean(shares):.0%}" if shares else ""


def draw_rates(rows: list[dict]) -> Figure:
    """Held-out loss over the rate, a line for each activation, a panel for each style."""
    rows = [row for row in rows if row["section"] == "rate" and row["val_loss"]]
    styles = sorted({row["style"] for row in rows})
    figure = Figure(figsize=(6.5 * max(1, len(styles)), 5), dpi=110, layout="constrained")
    panels = figure.subplots(1, max(1, len(styles)), squeeze=False)[0]
    for panel, style in zip(panels, styles):
        mine = [row for row in rows if row["style"] == style]
        base = float(mine[0]["val_loss_base"])
        for activation in dict.fromkeys(json.loads(row["options"])["activation"] for row in mine):
            losses = {}
            for row in mine:
                options = json.loads(row["options"])
                if options["activation"] == activation:
                    losses.setdefault(float(options["learning_rate"]), []).append(_loss(row))
            points = sorted((rate, statistics.fmean(values)) for rate, values in losses.items())
            panel.plot(*zip(*points), marker="o", label=activation)
        panel.axhline(base, color="0.5", linestyle="--", linewidth=1, label="without")
        panel.set(xscale="log", yscale="log", xlabel="learning rate", title=f"{style}: held-out loss after 150 steps")
        for axis in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            axis(ScalarFormatter())
        panel.grid(color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].legend(frameon=False, fontsize="small")
    return figure


def effects(rows: list[dict], base: dict) -> dict[str, list[tuple[str, float]]]:
    """Setting -> (style, held-out loss over the mean of that style's runs with `base`) of each of its runs.

    Of the rates' section only what has the rate of `base`, as the first setting `base` itself; no tags, whose held-out
    pictures have other captions.
    """
    plain = {}
    for row in _base_rows(rows, base):
        plain.setdefault(row["style"], []).append(_loss(row))
    found = {"*as it was*": []}
    for row in sorted(rows, key=lambda row: (row["section"], _order(row))):
        options = json.loads(row["options"])
        other_rate = row["section"] == "rate" and options["learning_rate"] != base["learning_rate"]
        if row["style"] in plain and row["section"] != "tags" and not other_rate:
            label = f"activation {options['activation']}" if row["section"] == "rate" else _label(row)
            label = "*as it was*" if options == base else label
            found.setdefault(label, []).append((row["style"], _loss(row) / statistics.fmean(plain[row["style"]])))
    return {label: dots for label, dots in found.items() if dots}


def seed_deviation(found: dict[str, list[tuple[str, float]]]) -> float:
    """Of the logarithm of the loss between the seeds of one setting and style, over all of them; 0 with one seed."""
    groups = {}
    for label, dots in found.items():
        for style, ratio in dots:
            groups.setdefault((label, style), []).append(math.log(ratio))
    variances = [statistics.variance(values) for values in groups.values() if len(values) > 1]
    return math.sqrt(statistics.fmean(variances)) if variances else 0.0


def _loss(row) -> float:
    """The held-out loss; of a run that has died, or of worse, ten times that of the model alone."""
    value, most = float(row["val_loss"]), 10 * float(row["val_loss_base"])
    return value if value < most else most


def draw_effects(rows: list[dict], base: dict) -> Figure:
    """A dot for each run, a colour for each style; shaded what another seed changes (two standard deviations)."""
    found = effects(rows, base)
    figure = Figure(figsize=(9, 1.4 + 0.24 * len(found)), dpi=110, layout="constrained")
    panel, noise = figure.subplots(), math.exp(2 * seed_deviation(found))
    panel.axvspan(1 / noise, noise, color="0.92", zorder=0, label="what another seed changes")
    for number, style in enumerate(sorted({style for dots in found.values() for style, _ in dots})):
        dots = [(ratio, line) for line, label in enumerate(found) for name, ratio in found[label] if name == style]
        panel.scatter(*zip(*dots), s=28, alpha=0.7, color=f"C{number}", label=style, linewidths=0, zorder=3)
    panel.axvline(1, color="0.4", linewidth=1)
    panel.set(xscale="log", xlabel="held-out loss, 1 is the mean of the runs as they were (less is better)")
    panel.set_yticks(range(len(found)), [label.strip("*") for label in found])
    panel.invert_yaxis()
    for axis in (panel.xaxis.set_major_formatter, panel.xaxis.set_minor_formatter):
        axis(ScalarFormatter())
    panel.grid(axis="y", color="0.92")
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*panel.get_legend_handles_labels(), frameon=False, loc="outside upper right", ncols=3)
    return figure
