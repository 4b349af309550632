"""What a grid found, in sentences.

A difference is claimed only where the tests over rows and over seeds, both corrected, show it. "Not shown" is not "equal", so each
difference stands with its interval. Beside the score stands what a method costs.
"""

from collections.abc import Mapping, Sequence

from rankwise.report import units
from rankwise.report.cells import Cell
from rankwise.report.row import Row, Verdict
from rankwise.report.words import clock, listed, minus, share, span
from rankwise.tasks.quality import Quality

METHODS_SHOWN = 6
"""Methods that get a sentence each; the table has the others."""


def answer(rows: Sequence[Row]) -> list[str]:
    """Write the headline, then a sentence for each method."""
    compared = [row for row in rows if row.difference is not None]
    if not compared:
        return [_best(rows), _why_not_compared(rows)]
    methods = list(dict.fromkeys(row.method for row in compared))
    lines = [_cost([row for row in compared if row.method == m], rows) for m in methods[:METHODS_SHOWN]]
    if len(methods) > METHODS_SHOWN:
        lines.append(f"{len(methods) - METHODS_SHOWN} more methods are in the table.")
    return [_headline(compared), *lines]


def of_one_run(row: Row, qualities: Mapping[Cell, Quality]) -> list[str]:
    """Say what one run reaches, and what always giving one answer would."""
    lines = [f"{row.method} reaches {units.estimate(row.score, row.metric)} {row.metric} on {row.task}."]
    quality = qualities.get((row.task, row.method))
    if quality is not None:
        low_high = (
            "" if quality.interval is None else " to ".join(f"{100 * end:.2f}" for end in quality.interval)
        )
        over = f"95 % over the {quality.n:,} validation rows: {low_high}. " if low_high else ""
        base = 100 * quality.baseline[quality.metric]
        lines.append(f"{over}Always {quality.baseline_answer!r:.60} would reach {base:.2f}.")
    trained = f"{row.method} trains {share(row.trainable_share)} of the parameters"
    return [*lines, f"{trained} ({row.trainable:,}), in {clock(row.train_seconds)} on {row.n_train:,} rows."]


def _best(rows: Sequence[Row]) -> str:
    """Name the best mean on each task. Without a test nothing more can be said."""
    parts = []
    for task in dict.fromkeys(row.task for row in rows):
        best = max(
            (row for row in rows if row.task == task),
            key=lambda row: units.better(row.metric) * row.score.mean,
        )
        parts.append(f"{task} {units.estimate(best.score, best.metric)} {best.metric} ({best.method})")
    return f"Best mean score: {listed(parts)}."


def _why_not_compared(rows: Sequence[Row]) -> str:
    if any(row.reference for row in rows):
        return "Nothing can be compared with full fine-tuning yet: that takes another method with the same seeds."
    return "Full fine-tuning is not in this grid, so nothing is compared with it. Add it with --methods full."


def _headline(compared: Sequence[Row]) -> str:
    """Write `lora is behind full fine-tuning on rte; for lora:rank=2 no difference is shown.`"""
    parts = [
        part
        for verdict in ("shown", "open")
        for side in ("ahead of", "behind")
        if (part := _claim(compared, verdict, side))
    ]
    undecided = [
        method
        for method in dict.fromkeys(row.method for row in compared)
        if all(row.verdict == "not shown" for row in compared if row.method == method)
    ]
    if undecided and not parts:
        tasks = list(dict.fromkeys(row.task for row in compared))
        parts.append(
            f"No difference from full fine-tuning is shown for {listed(undecided)} on {listed(tasks)}"
        )
    elif undecided:
        parts.append(f"for {listed(undecided)} no difference is shown")
    if max(row.score.n for row in compared) == 1:
        parts.append("with one seed, nothing is known about spread between runs")
    return f"{'; '.join(parts)}."


def _claim(compared: Sequence[Row], verdict: Verdict, side: str) -> str:
    """Say which methods are on one side of full fine-tuning, and on which tasks; empty where none is."""
    rows = [row for row in compared if row.verdict == verdict and _side(row) == side]
    if not rows:
        return ""
    methods = dict.fromkeys(row.method for row in rows)
    (first, tasks), *others = [(m, listed([row.task for row in rows if row.method == m])) for m in methods]
    verb = "is" if verdict == "shown" else "may be"
    doubt = " (one of two tests says so)" if verdict == "open" else ""
    named = [f"{first} {verb} {side} full fine-tuning on {tasks}", *(f"{m} on {t}" for m, t in others)]
    return f"{', '.join(named)}{doubt}"


def _side(row: Row) -> str:
    ahead = row.difference is not None and units.better(row.metric) * row.difference.mean > 0
    return "ahead of" if ahead else "behind"


def _cost(mine: Sequence[Row], rows: Sequence[Row]) -> str:
    """Write what a method costs and gains, over all tasks.

    `lora trains 0.7 % of the parameters, in 58 to 63 % of full's peak memory, at 1.4× its rows/s; −0.40 ± 3.50 points against full.`
    """
    full = {row.task: row for row in rows if row.reference}
    pairs = [(row, full[row.task]) for row in mine if row.task in full]
    shares = [share(value) for value in sorted(row.trainable_share for row in mine)]
    costs = [
        f"{mine[0].method} trains {' to '.join(dict.fromkeys((shares[0], shares[-1])))} of the parameters"
    ]
    memory = [100 * row.peak_mb / other.peak_mb for row, other in pairs if row.peak_mb and other.peak_mb]
    if memory:
        costs.append(f"in {span(memory, ' %')} of full's peak memory")
    speed = [
        row.rows_per_second / other.rows_per_second
        for row, other in pairs
        if row.rows_per_second and other.rows_per_second
    ]
    if speed:
        costs.append(f"at {span(speed, '×', 1)} its rows/s")
    return minus(f"{', '.join(costs)}; {_points(mine)} against full.")


def _points(mine: Sequence[Row]) -> str:
    """Write one task's difference with its interval; of several tasks the smallest and the largest difference, by metric's unit."""
    parts = []
    for metric in dict.fromkeys("" if units.scale(row.metric) == 100 else row.metric for row in mine):
        rows = [
            row
            for row in mine
            if metric in ("", row.metric) and (units.scale(row.metric) == 100) == (not metric)
        ]
        differences = [row.difference for row in rows if row.difference is not None]
        if not differences:
            continue
        low, high = (units.number(f(d.mean for d in differences), metric, sign=True) for f in (min, max))
        shown = f"{low} to {high}" if low != high else low
        if len(differences) == 1:
            shown = units.estimate(differences[0], metric, sign=True)
        parts.append(f"{shown} {metric or 'points'}")
    return listed(parts)
