"""From runs to the rows of the results table: means over seeds, paired differences and tests."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from rankwise.errors import RankwiseError
from rankwise.report import stats
from rankwise.report.cells import Cell, Cells, Run, folds_of, tables_of
from rankwise.report.row import REFERENCE, Row, is_full


def rows(cells: Cells) -> tuple[list[Row], list[str]]:
    """Make the table.

    Returns:
        One row for each task and method; and a sentence for each that can't be compared with full fine-tuning.
    """
    full = references(cells)
    tests: dict[Cell, stats.McNemar] = {}
    p_seeds: dict[Cell, float] = {}
    unpaired: dict[Cell, str] = {}
    for (task, method), runs in cells.items():
        reference = cells.get((task, full.get(task, "")), {})
        shared = sorted(runs.keys() & reference.keys())
        if method == full.get(task) or not shared:
            continue
        try:
            pairs = zip(*(tables_of({s: some[s] for s in shared}) for some in (runs, reference)), strict=True)
            tests[task, method] = stats.mcnemar(list(pairs))
        except RankwiseError as error:
            unpaired[task, method] = f"{task} {method} can't be compared with {full[task]}. {error}"
            continue
        p = stats.paired_t(_scores(runs), _scores(reference), _overlap(runs))
        if p is not None:
            p_seeds[task, method] = p
    p_rows = _corrected({cell: test.p for cell, test in tests.items()})
    p_seeds = _corrected(p_seeds)
    made = [
        _row(
            cell,
            cells,
            full.get(cell[0]),
            tests.get(cell),
            p_rows.get(cell),
            p_seeds.get(cell),
            cell not in unpaired,
        )
        for cell in cells
    ]
    return made, list(unpaired.values())


def references(cells: Cells) -> dict[str, str]:
    """Return the method that each task's others are compared with: `full`, or else the first `full:…` that was asked for."""
    found: dict[str, str] = {}
    for task, method in cells:
        if method == REFERENCE or (is_full(method) and task not in found):
            found[task] = method
    return found


def _corrected(p_values: Mapping[Cell, float]) -> dict[Cell, float]:
    return dict(zip(p_values, stats.holm(list(p_values.values())), strict=True))


def _row(
    cell: Cell,
    cells: Cells,
    reference: str | None,
    test: stats.McNemar | None,
    p_rows: float | None,
    p_seeds: float | None,
    paired: bool,
) -> Row:
    runs, full = cells[cell], cells.get((cell[0], reference or ""), {})
    results = [run.result for run in runs.values()]
    scores, of_full = _scores(runs), _scores(full)
    first = results[0]
    names = set.intersection(*(set(_headline(r)) for r in results)) - {first["metric"], "loss"}
    trainable, adapter = ([r[key] for r in results] for key in ("trainable_params", "adapter_params"))
    paired = paired and cell[1] != reference
    memory = _memory(results)
    return Row(
        task=cell[0],
        method=cell[1],
        metric=first["metric"],
        reference=cell[1] == reference,
        folds=folds_of(runs),
        score=stats.estimate(list(scores.values()), _overlap(runs)),
        scores=scores,
        other_metrics={name: statistics.fmean(_headline(r)[name] for r in results) for name in sorted(names)},
        difference=stats.paired_difference(scores, of_full, _overlap(runs)) if paired else None,
        differences={s: scores[s] - of_full[s] for s in scores if s in of_full} if paired else {},
        p_rows=p_rows,
        p_seeds=p_seeds,
        only_this=test.only_first if test else None,
        only_full=test.only_second if test else None,
        trainable=round(statistics.fmean(trainable)),
        trainable_range=(min(trainable), max(trainable)),
        trainable_share=statistics.fmean(trainable) / (first["total_params"] - first["adapter_params"]),
        adapter_params=round(statistics.fmean(adapter)),
        adapter_params_range=(min(adapter), max(adapter)),
        mean_rank=_median(r.get("mean_rank") for r in results),
        rows_per_second=_median(r["samples_per_second"] for r in results),
        speeds=[r["samples_per_second"] for r in results if r["samples_per_second"] is not None],
        peak_mb=memory["total"]
        if memory
        else _median(r.get("peak_cuda_mb") or r["peak_rss_mb"] for r in results),
        memory=memory,
        train_seconds=statistics.median(r["train_seconds"] for r in results),
        n_train=first["n_train"],
        n_validation=sum(r["n_validation"] for r in results) if folds_of(runs) else first["n_validation"],
    )


def _overlap(runs: Mapping[int, Run]) -> float:
    """Return n_test/n_train of the folds of a cross-validation; 0 for seeds."""
    folds = folds_of(runs)
    return 0.0 if folds is None else 1 / (folds - 1)


def _scores(runs: Mapping[int, Run]) -> dict[int, float]:
    return {seed: run.result["score"] for seed, run in runs.items()}


def _headline(result: dict[str, Any]) -> dict[str, float]:
    """Return the scores on the first validation split."""
    return next(iter(result["scores"].values()), {})


def _memory(results: list[dict[str, Any]]) -> dict[str, float] | None:
    """Return the peak tensor memory by kind in MB, of the run with the median total, so that the kinds still sum to it.

    None where a run has none.
    """
    recorded = [r.get("peak_memory_mb") for r in results]
    whole = [kinds for kinds in recorded if isinstance(kinds, dict) and kinds.get("total") is not None]
    if len(whole) < len(recorded):
        return None
    return sorted(whole, key=lambda kinds: kinds["total"])[(len(whole) - 1) // 2]


def _median(values: Iterable[float | None]) -> float | None:
    """Return the median, or None as soon as one run has no value: a median over some of them would mislead."""
    values = list(values)
    return None if any(v is None for v in values) else statistics.median(v for v in values if v is not None)
