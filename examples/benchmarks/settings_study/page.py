"""Write the tables and plots of settings.md from the rows of settings.csv."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from examples.benchmarks.settings_study.agreement import build_agreement_table
from examples.benchmarks.settings_study.plots import draw_agreement, draw_learning_rates, draw_settings
from examples.benchmarks.settings_study.rows import Row, figures_of, runs_of
from examples.benchmarks.settings_study.settings import SECTIONS, setting_label
from hypernet.utils.atomic_files import atomic_write

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "settings.md"
PLOTS = {
    DOCS / "images" / "settings_effects.png": draw_settings,
    DOCS / "images" / "settings_rate.png": draw_learning_rates,
    DOCS / "images" / "settings_agreement.png": draw_agreement,
}
COLUMNS = {  # figure -> heading and format
    "val_loss": ("validation loss", "{:.3f}"),
    "style_distance": ("style distance", "{:.2f}"),
    "prompt_fidelity": ("prompt fidelity", "{:.2f}"),
    "score": ("score", "{:.2f}"),
    "style_share": ("in the style", "{:.0%}"),
    "subject_share": ("correct subject", "{:.0%}"),
}


def write_page(rows: Sequence[Row]) -> None:
    """Replace the tables between `<!-- NAME -->` and `<!-- end -->` in the page, and the plots."""
    if not rows:
        return
    text = PAGE.read_text(encoding="utf-8")
    tables = {section: build_table(rows, section) for section in SECTIONS}
    for name, table in {**tables, "agreement": build_agreement_table(rows), "runs": describe_runs(rows)}.items():
        text = replace_table(text, name, table)
    with atomic_write(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    for path, draw in PLOTS.items():
        draw(rows).savefig(path)
    print(PAGE, *PLOTS, sep="\n")


def describe_runs(rows: Sequence[Row]) -> str:
    """Return the sentence that counts the runs and names their model."""
    count = len({setting_label(row.setting) for row in rows})
    return f"All figures are of {len(rows)} runs of {count} settings on the model whose UNet is `{rows[0].model}`."


def replace_table(text: str, name: str, table: str) -> str:
    """Replace a table in a page; a page without a place for it stays as it is."""
    before, marker, rest = text.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    return f"{before}{marker}{table}\n{end}{after}" if end else text


def build_table(rows: Sequence[Row], section: str) -> str:
    """Return a Markdown table with a line per setting of a section: the means of the seeds.

    The first line has the standard deviations, too. In the others, a mean is bold if it differs from the first line's
    by more than two standard errors of a difference. For them, all settings are assumed to vary alike between seeds.
    Each style that has the whole section has its own lines.
    """
    headings = [heading for heading, _ in COLUMNS.values()]
    lines = [f"| setting | {' | '.join(headings)} | file, kB |", "| --- " * (2 + len(COLUMNS)) + "|"]
    styles = [
        style
        for style in dict.fromkeys(row.style for row in rows)
        if all(runs_of(rows, style, setting) for setting in SECTIONS[section])
    ]
    for style in styles:
        groups = {setting_label(setting): runs_of(rows, style, setting) for setting in SECTIONS[section]}
        plain = groups[setting_label(SECTIONS[section][0])]
        for label, group in groups.items():
            cells = [
                _format_cell(group, plain, pooled_deviation(rows, style, name), name, form)
                for name, (_, form) in COLUMNS.items()
            ]
            size = f"{figures_of(group, 'file_bytes')[0] / 1e3:,.0f}"
            prefix = f"{style}: " if len(styles) > 1 else ""
            lines.append(f"| {prefix}{label}{_count(group)} | {' | '.join(cells)} | {size} |")
    return "\n".join(lines)


def _count(group: Sequence[Row]) -> str:
    return "" if len(group) == 2 else f" ({len(group)} seed{'s' * (len(group) > 1)})"


def pooled_deviation(rows: Sequence[Row], style: str, name: str) -> float:
    """Return the standard deviation of a figure between seeds, pooled over the settings; NaN if none has two."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.style == style:
            groups.setdefault(setting_label(row.setting), []).append(row)
    known = [values for group in groups.values() if len(values := figures_of(group, name)) > 1]
    freedom = sum(len(values) - 1 for values in known)
    squares = sum((len(values) - 1) * statistics.variance(values) for values in known)
    return math.sqrt(squares / freedom) if freedom else math.nan


def _format_cell(group: Sequence[Row], plain: Sequence[Row], deviation: float, name: str, form: str) -> str:
    """Return the mean of a figure over a group of runs; `plain` are those to compare it with.

    Args:
        deviation: of the figure between seeds.
    """
    values, others = (figures_of(runs, name) for runs in (group, plain))
    if not values:
        return ""
    middle = statistics.fmean(values)
    text = form.format(middle)
    if group is plain:
        return f"{text} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else text
    if not others:
        return text
    limit = 2 * deviation * math.sqrt(1 / len(values) + 1 / len(others))
    return f"**{text}**" if abs(middle - statistics.fmean(others)) > limit else text
