"""The tables of settings.md, from the rows of settings.csv."""

import itertools
import json
import math
import re
import statistics
from pathlib import Path

from examples.benchmarks.settings_study.plots import BASELINE, MEASURES, draw_effects, draw_rates, effects
from examples.benchmarks.settings_study.rows import at_rate, base_rows, label, order
from examples.benchmarks.settings_study.timing import LORA, read_times, shape
from examples.comparison.table import spread
from hypernet.utils.atomic_files import atomic_write

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "settings.md"
RATES_PLOT = DOCS / "images" / "settings_rate.png"
EFFECTS_PLOT = DOCS / "images" / "settings_effects.png"


def write_page(rows: list[dict], base: dict):
    """Renew what stands between `<!-- NAME -->` and `<!-- end -->` in the page, and the plots.

    `base` are the options of that run of the rates' section with which all other sections are compared.
    """
    text, times = PAGE.read_text(encoding="utf-8"), read_times()
    tables = {
        section: write_table(rows, section, base, times) for section in dict.fromkeys(row["section"] for row in rows)
    }
    tables["changes"] = write_changes(effects(rows, base))
    tables["activation"] = write_table(at_rate(rows, base["learning_rate"]), "rate", base, times)
    for name, table in tables.items():
        text = re.sub(
            rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)",
            lambda m, t=table: f"{m[1]}{t}\n{m[2]}",
            text,
            flags=re.S,
        )
    with atomic_write(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    draw_rates(rows).savefig(RATES_PLOT)
    draw_effects(rows, base).savefig(EFFECTS_PLOT)
    print(PAGE, RATES_PLOT, EFFECTS_PLOT, sep="\n")


def write_table(rows: list[dict], section: str, base: dict, times: dict[str, float]) -> str:
    """One line for each setting, for each style its figures: mean and deviation of the seeds; first the baseline's."""
    mine = sorted((row for row in rows if row["section"] == section), key=order)
    styles, seeds, settings = sorted({row["style"] for row in mine}), len({row["seed"] for row in mine}), {}
    if section != "tags":  # whose held-out pictures have other captions
        found = base_rows(rows, base)
        settings[f"*{BASELINE}*, {len({row['seed'] for row in found})} seeds"] = found
    for row in mine:
        settings.setdefault(label(row), []).append(row)
    head = [f"{style}: held-out loss | half at step | in the style | subject right" for style in styles]
    lines = [f"| setting | {' | '.join(head)} | UNet's step | file, kB |", "| --- " * (3 + 4 * len(styles)) + "|"]
    for name, found in settings.items():
        cells = [cell for style in styles for cell in _cells([row for row in found if row["style"] == style], seeds)]
        size = next((f"{int(row['file_bytes']) / 1e3:,.0f}" for row in found if row["file_bytes"]), "")
        lines.append(f"| {name} | {' | '.join(cells)} | {_time(found, times)} | {size} |")
    return "\n".join(lines)


def write_changes(found: dict) -> str:
    """The means of `effects`, in brackets those that are less than two standard errors of the difference.

    Every run is taken to scatter as the baseline's do; the baseline's own line is their standard deviation.
    """
    styles = sorted({style for style, _ in found[BASELINE]})
    heads = [f"{style}: {measure.removesuffix(' more or less')}" for style in styles for measure in MEASURES]
    lines = [f"| setting | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    for name, runs in found.items():
        cells = []
        for style, measure in itertools.product(styles, range(len(MEASURES))):
            mine, plain = ([changes[measure] for s, changes in each if s == style] for each in (runs, found[BASELINE]))
            cells.append(_change(mine, plain) if name != BASELINE else f"± {statistics.stdev(plain):.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _change(mine: list[float], plain: list[float]) -> str:
    if not mine:
        return ""
    limit = 2 * statistics.stdev(plain) * math.sqrt(1 / len(mine) + 1 / len(plain))
    text = f"{statistics.fmean(mine):+.1f}"
    return text if abs(statistics.fmean(mine)) > limit else f"({text})"


def _cells(rows, seeds: int) -> list[str]:
    """The figures of one setting and style; how many runs they are of, if that is less than there are seeds."""
    reached = [int(row["half_at_step"]) for row in rows if row["half_at_step"]]
    everywhere = reached and len(reached) == len(rows)
    count = f" ({len(rows)} of {seeds} runs)" if 0 < len(rows) < seeds else ""
    return [
        spread([float(row["val_loss"]) for row in rows if row["val_loss"]], "{:.3f}") + count,
        f"{statistics.fmean(reached):.0f}" if everywhere else f"{len(reached)} of {len(rows)}" if rows else "",
        *(_mean([float(row[name]) for row in rows if row[name]]) for name in ("style_share", "subject_share")),
    ]


def _time(rows, times) -> str:
    if not rows:
        return ""
    name = LORA if rows[0]["rank"] else shape(json.loads(rows[0]["options"]))
    return f"{times[name]:.2f}" if name in times else ""


def _mean(shares) -> str:
    return f"{statistics.fmean(shares):.0%}" if shares else ""
