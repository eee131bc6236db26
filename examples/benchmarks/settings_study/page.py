"""Write the tables of settings.md from the rows of settings.csv."""

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

from examples.benchmarks.settings_study.plots import (
    BASELINE,
    MEASURES,
    Changes,
    draw_changes,
    draw_learning_rates,
    find_changes,
)
from examples.benchmarks.settings_study.rows import Row, at_learning_rate, baseline_rows, setting_label, sort_key
from examples.benchmarks.settings_study.timing import LORA, cost_key, read_times
from examples.comparison.table import format_mean
from hypernet.utils.atomic_files import atomic_write

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "settings.md"
LEARNING_RATES_PLOT = DOCS / "images" / "settings_rate.png"
CHANGES_PLOT = DOCS / "images" / "settings_effects.png"
HEADINGS = ("validation loss", "{:.0%} less at step", "in the style", "correct subject")  # of each style


def write_page(rows: list[Row], base: dict[str, Any], model: str) -> None:
    """Replace the tables between `<!-- NAME -->` and `<!-- end -->` in the page, and the plots.

    Args:
        rows: the runs of one model; if it is not today's, the page says so.
        base: the options of the baseline, a run of the section "rate".
        model: the hash of today's model.
    """
    measured = rows[0]["model"]
    text, times = PAGE.read_text(encoding="utf-8"), read_times(measured)
    sections = dict.fromkeys(row["section"] for row in rows)
    tables = {section: build_table(rows, section, base, times) for section in sections}
    tables["changes"] = build_changes_table(find_changes(rows, base))
    tables["activation"] = build_table(at_learning_rate(rows, base["learning_rate"]), "rate", base, times)
    tables["model"] = describe_model(measured, model)
    for name, table in tables.items():
        text = _replace_table(text, name, table)
    with atomic_write(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    draw_learning_rates(rows).savefig(LEARNING_RATES_PLOT)
    draw_changes(rows, base).savefig(CHANGES_PLOT)
    print(PAGE, LEARNING_RATES_PLOT, CHANGES_PLOT, sep="\n")


def describe_model(measured: str, model: str) -> str:
    """Return the sentence that says which model the figures of the page belong to."""
    if measured == model:
        return f"All figures are of today's quickstart model (UNet `{model}`)."
    return f"**All figures are of an earlier quickstart model** (UNet `{measured}`); today's has not been measured yet."


def _replace_table(text: str, name: str, table: str) -> str:
    """Replace a table in a page; a page without a place for it stays as it is."""
    before, marker, rest = text.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    return f"{before}{marker}{table}\n{end}{after}" if end else text


def build_table(rows: list[Row], section: str, base: dict[str, Any], times: dict[str, float]) -> str:
    """Return a Markdown table with a line per setting: for each style, mean and deviation of the seeds.

    The baseline comes first, but not in the section "tags", whose validation images have other captions.
    """
    in_section = sorted((row for row in rows if row["section"] == section), key=sort_key)
    styles, seeds = sorted({row["style"] for row in in_section}), len({row["seed"] for row in in_section})
    settings: dict[str, list[Row]] = {}
    if section != "tags":
        found = baseline_rows(rows, base)
        settings[f"*{BASELINE}*, {len({row['seed'] for row in found})} seeds"] = found
    for row in in_section:
        settings.setdefault(setting_label(row), []).append(row)
    reach = float(in_section[0]["reach"])
    headings = [f"{style}: {' | '.join(HEADINGS).format(1 - reach)}" for style in styles]
    lines = [f"| setting | {' | '.join(headings)} | step time | file, kB |"]
    lines.append("| --- " * (3 + len(HEADINGS) * len(styles)) + "|")
    for name, found in settings.items():
        cells = [cell for style in styles for cell in _cells([row for row in found if row["style"] == style], seeds)]
        size = next((f"{int(row['file_bytes']) / 1e3:,.0f}" for row in found if row["file_bytes"]), "")
        lines.append(f"| {name} | {' | '.join(cells)} | {_time(found, times)} | {size} |")
    return "\n".join(lines)


def build_changes_table(changes: Changes) -> str:
    """Return a Markdown table of the mean changes, in parentheses if less than two standard errors of the difference.

    All settings are assumed to vary between seeds as the baseline does. Its own line shows this standard deviation.
    """
    styles = sorted({style for style, _ in changes[BASELINE]})
    headings = [f"{style}: {measure}" for style in styles for measure in MEASURES]
    lines = [f"| setting | {' | '.join(headings)} |", "| --- " * (1 + len(headings)) + "|"]
    for name, runs in changes.items():
        cells = []
        for style, measure in itertools.product(styles, range(len(MEASURES))):
            values, plain = (
                [figures[measure] for run_style, figures in group if run_style == style]
                for group in (runs, changes[BASELINE])
            )
            cells.append(_format_change(values, plain) if name != BASELINE else f"± {statistics.stdev(plain):.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_change(values: list[float], plain: list[float]) -> str:
    if not values:
        return ""
    mean, limit = statistics.fmean(values), 2 * statistics.stdev(plain) * math.sqrt(1 / len(values) + 1 / len(plain))
    return f"{mean:+.1f}" if abs(mean) > limit else f"({mean:+.1f})"


def _cells(rows: list[Row], seeds: int) -> list[str]:
    """Return the cells of a setting in a style, with the number of runs if it is below that of the seeds."""
    reached = [int(row["reached_at_step"]) for row in rows if row["reached_at_step"]]
    all_reached = reached and len(reached) == len(rows)
    count = f" ({len(rows)} of {seeds} runs)" if 0 < len(rows) < seeds else ""
    return [
        format_mean([float(row["val_loss"]) for row in rows if row["val_loss"]], "{:.3f}") + count,
        f"{statistics.fmean(reached):.0f}" if all_reached else f"{len(reached)} of {len(rows)}" if rows else "",
        *(_mean_share([float(row[name]) for row in rows if row[name]]) for name in ("style_share", "subject_share")),
    ]


def _time(rows: list[Row], times: dict[str, float]) -> str:
    if not rows:
        return ""
    key = LORA if rows[0]["rank"] else cost_key(json.loads(rows[0]["options"]))
    return f"{times[key]:.2f}" if key in times else ""


def _mean_share(shares: list[float]) -> str:
    return f"{statistics.fmean(shares):.0%}" if shares else ""
