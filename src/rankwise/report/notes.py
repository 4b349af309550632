"""The sentences beside the table: how its columns are computed, and what they can't show."""

from collections.abc import Iterable, Mapping, Sequence

from rankwise.report import units
from rankwise.report.cells import Cell, Cells, Run, folds_of
from rankwise.report.row import REFERENCE, Row
from rankwise.run_folder import one_answer
from rankwise.tasks.objectives import OBJECTIVES
from rankwise.tasks.quality import Quality


def notes(rows: Sequence[Row]) -> list[str]:
    """Explain the table's columns."""
    seeds = sorted({row.score.n for row in rows})
    lines = [
        f"Score: mean ± 95 % t interval over seeds (n = {', '.join(map(str, seeds))}).",
        f"Δ full: paired difference from full fine-tuning over the same seeds, {units.of_differences([row.metric for row in rows])}.",
        "p rows: exact McNemar test over validation rows, Holm-corrected. With several seeds a row counts once, for the method "
        "that is right on it in more of them.",
    ]
    folds = next((row.folds for row in rows if row.folds), None)
    repeats = "folds" if folds else "seeds"
    if folds is not None:
        lines = [
            line.replace("over seeds", "over folds").replace("same seeds", "same folds") for line in lines
        ]
        lines.append(
            f"Folds of a cross-validation share training rows, so that they aren't independent: intervals and p folds take the variance "
            f"(1/n + 1/{folds - 1})·s², the corrected t test of Nadeau & Bengio (2003). Each row is validated on once."
        )
    if any(row.metric in OBJECTIVES["regression"].metrics for row in rows):
        lines.append(
            "In regression, p rows is a sign test: a row counts for the method whose prediction is nearer."
        )
    if any(row.p_seeds is not None for row in rows):
        lines.append(f"p {repeats}: paired t test over the {repeats} that both methods have, Holm-corrected.")
    lines += [
        f"{row.task} {row.method} is right on {'more' if _wins(row) else 'fewer'} rows than full, and its {row.metric} is not "
        f"{'higher' if _wins(row) else 'lower'}: p rows counts right and wrong, so it says nothing about {row.metric} here."
        for row in rows
        if row.rows_contradict
    ]
    others = {row.task: row.method for row in rows if row.reference and row.method != REFERENCE}
    lines += [f"Full fine-tuning is {method} on {task}." for task, method in others.items()]
    if seeds[0] == 1:
        lines.append("One seed shows nothing about spread: give --seeds 3 or more for intervals.")
    if any(row.verdict == "not shown" for row in rows):
        lines.append("Not shown is not equal: the intervals say how large a difference may still be.")
    if any(row.rows_per_second is None for row in rows):
        lines.append(
            "Runs that shared the machine (--jobs) or took very few steps show no speed, because it would mislead."
        )
    if any(row.memory for row in rows):
        lines.append("Peak memory by kind: tensor bytes, the same on CPU and GPU (1 MB = 10⁶ bytes).")
    if not all(row.memory for row in rows):
        lines.append(
            "Peak memory: on a GPU the allocator's; elsewhere resident memory above the level before the model was loaded "
            "(1 MB = 10⁶ bytes)."
        )
    return lines


def baselines(qualities: Mapping[Cell, Quality]) -> list[str]:
    """Say what always giving the same answer would score on each task."""
    first: dict[str, Quality] = {}
    for (task, _), quality in qualities.items():
        if quality.classes:
            first.setdefault(task, quality)
    return [
        f"On {task} always {one.baseline_answer!r:.60} gives {100 * one.baseline[one.metric]:.2f} {one.metric}."
        for task, one in first.items()
    ]


def _wins(row: Row) -> bool:
    """Return whether a method is right on more rows than full fine-tuning."""
    return (row.only_this or 0) > (row.only_full or 0)


def different_rows(cells: Cells) -> list[str]:
    """Name the methods whose seeds were trained on different numbers of rows, as runs of `train` may be."""
    lines = []
    for (task, method), runs in cells.items():
        numbers = sorted({run.result["n_train"] for run in runs.values()})
        if len(numbers) > 1 and folds_of(runs) is None:
            lines.append(
                f"Seeds of {task} {method} were trained on different numbers of rows: {numbers[0]:,} to {numbers[-1]:,}."
            )
    return lines


def constant_predictions(runs: Iterable[Run]) -> list[str]:
    """Name the runs that predicted the same class for every row."""
    names = [run.folder.path.name for run in runs if one_answer(run.predictions)]
    if not names:
        return []
    return [
        f"These runs predict the same class for every row, so they learned nothing: {', '.join(names)}. "
        "A lower learning rate may help."
    ]
