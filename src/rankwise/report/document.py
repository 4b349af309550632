"""From run folders to what is said about them: one `Row` a task and method, and the sentences that belong beside the table."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from rankwise.errors import RankwiseError
from rankwise.files import damaged
from rankwise.report import stats
from rankwise.report.answer import answer
from rankwise.report.curves import Curve, curves
from rankwise.report.examples import Example, disagreements
from rankwise.report.rank_pattern import RankMap, rank_maps
from rankwise.report.row import REFERENCE, Row
from rankwise.run_folder import RunFolder, one_answer, read_grid, run_folders
from rankwise.runs import recipes
from rankwise.tasks.problems import PROBLEMS

Cell = tuple[str, str]
"""A task and a method."""


@dataclass(frozen=True)
class Run:
    """A finished run, each of its files read once."""

    folder: RunFolder
    result: dict[str, Any]
    record: dict[str, Any]
    predictions: pa.Table
    settings: dict[str, str]


@dataclass(frozen=True)
class Document:
    """A report: its rows, every run's result, and what has to be said with them.

    Attributes:
        answer: what the grid found, in sentences; the first is the headline.
        rows: one a task and method.
        runs: every finished run's result.json.
        left_out: a sentence for each run that isn't in the rows, and why.
        notes: how to read the figures.
        published: published scores as sentences; `published_scores` the same as data.
        curves, maps, examples: training curves, rank maps, and rows on which methods disagree.
        settings: what was set, on what machine, with which versions, by which command.
        planned: runs that the grid asks for in all.
    """

    out: Path
    answer: list[str]
    rows: list[Row]
    runs: list[dict[str, Any]]
    left_out: list[str]
    notes: list[str]
    published: list[str]
    published_scores: list[dict[str, Any]]
    curves: list[Curve]
    maps: list[RankMap]
    examples: list[Example]
    settings: dict[str, str]
    planned: int


def collect(out: Path) -> Document:
    """Reads every run folder under `out`.

    Raises:
        RankwiseError: there is no such folder, or no finished run in it.
    """
    if not out.is_dir():
        raise RankwiseError(f"{out} is no folder. Name the one that `rankwise compare --out` wrote.")
    runs: list[Run] = []
    left_out: list[str] = []
    folders = run_folders(out)
    for folder in folders:
        try:
            if folder.finished:
                runs.append(_read(folder))
            else:
                left_out.append(_unfinished(folder))
        except RankwiseError as error:
            left_out.append(f"Left out: {error}")
    if not runs:
        raise RankwiseError(" ".join([f"{out} holds no finished run.", *left_out]))
    grid = read_grid(out)
    cells = _cells(runs, grid)
    rows, unpaired = _rows(cells)
    drawn, unread = curves(cells)
    maps, unmapped = rank_maps(cells)
    return Document(
        out=out,
        answer=answer(rows),
        rows=rows,
        runs=[run.result for run in runs],
        left_out=left_out,
        notes=[*_notes(rows), *_one_answer(runs), *unpaired, *unread, *unmapped],
        published=_published_lines(run.result for run in runs),
        published_scores=_published_scores(run.result for run in runs),
        curves=drawn,
        maps=maps,
        examples=disagreements(cells),
        settings=_settings(runs, grid),
        planned=max(len(folders), _planned(grid)),
    )


def _read(folder: RunFolder) -> Run:
    result, record, predictions = folder.read_result(), folder.read_run(), folder.read_predictions()
    if len(predictions) != result["n_validation"]:
        raise RankwiseError(
            f"{folder.path} doesn't fit together: predictions.parquet has {len(predictions):,} rows, "
            f"result.json says {result['n_validation']:,}. Remove this folder to run it again."
        )
    try:
        settings = _setting(record, result)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(folder.path / "run.json", f"its settings can't be read: {error}") from None
    return Run(folder, result, record, predictions, settings)


def _planned(grid: dict[str, Any]) -> int:
    return len(grid.get("tasks", [])) * len(grid.get("methods", [])) * grid.get("seeds", 0)


def _unfinished(folder: RunFolder) -> str:
    failed = folder.read_run().get("failed")
    return f"{folder.path.name} failed: {failed}" if failed else f"{folder.path.name} is not finished."


def _cells(runs: list[Run], grid: dict[str, Any]) -> dict[Cell, dict[int, Run]]:
    """The runs by task and method, in the order that the grid was asked for, and by seed."""
    cells: dict[Cell, dict[int, Run]] = {}
    for run in runs:
        cells.setdefault((run.result["task"], run.result["method"]), {})[run.result["seed"]] = run
    tasks, methods = (
        {name: place for place, name in enumerate(grid.get(key, []))} for key in ("tasks", "methods")
    )
    order = sorted(cells, key=lambda cell: (tasks.get(cell[0], 99), methods.get(cell[1], 99), cell))
    return {cell: dict(sorted(cells[cell].items())) for cell in order}


def _rows(cells: Mapping[Cell, dict[int, Run]]) -> tuple[list[Row], list[str]]:
    """The table's rows, and a sentence for each that can't be compared with full fine-tuning."""
    over_rows: dict[Cell, stats.McNemar] = {}
    over_seeds: dict[Cell, float] = {}
    unpaired: dict[Cell, str] = {}
    for (task, method), mine in cells.items():
        reference = cells.get((task, REFERENCE), {})
        shared = sorted(mine.keys() & reference.keys())
        if method == REFERENCE or not shared:
            continue
        try:
            over_rows[task, method] = stats.mcnemar(
                [(mine[s].predictions, reference[s].predictions) for s in shared]
            )
        except RankwiseError as error:
            unpaired[task, method] = f"{task} {method} has no difference to full. {error}"
            continue
        p = stats.paired_t(_scores(mine), _scores(reference))
        if p is not None:
            over_seeds[task, method] = p
    p_rows = dict(zip(over_rows, stats.holm([test.p for test in over_rows.values()]), strict=True))
    p_seeds = dict(zip(over_seeds, stats.holm(list(over_seeds.values())), strict=True))
    rows = [
        _row(cell, cells, over_rows.get(cell), p_rows.get(cell), p_seeds.get(cell), cell not in unpaired)
        for cell in cells
    ]
    return rows, list(unpaired.values())


def _row(
    cell: Cell,
    cells: Mapping[Cell, dict[int, Run]],
    test: stats.McNemar | None,
    p: float | None,
    p_seeds: float | None,
    paired: bool,
) -> Row:
    mine, full = cells[cell], cells.get((cell[0], REFERENCE), {})
    results = [run.result for run in mine.values()]
    scores, reference = _scores(mine), _scores(full)
    one = results[0]
    further = (
        next(iter(one["scores"].values())).keys() - {one["metric"], "loss"} if one.get("scores") else set()
    )
    paired = paired and cell[1] != REFERENCE
    memory = _memory(results)
    return Row(
        task=cell[0],
        method=cell[1],
        metric=one["metric"],
        score=stats.estimate(list(scores.values())),
        scores=scores,
        more={name: statistics.fmean(_further(r, name) for r in results) for name in sorted(further)},
        difference=stats.paired_difference(scores, reference) if paired else None,
        differences={s: scores[s] - reference[s] for s in scores if s in reference} if paired else {},
        p=p,
        p_seeds=p_seeds,
        only_this=test.only_first if test else None,
        only_full=test.only_second if test else None,
        trainable=one["trainable_params"],
        share=one["trainable_params"] / (one["total_params"] - one["adapter_params"]),
        adapter_params=one["adapter_params"],
        mean_rank=_median(r.get("mean_rank") for r in results),
        rows_per_second=_median(r["samples_per_second"] for r in results),
        speeds=[r["samples_per_second"] for r in results if r["samples_per_second"] is not None],
        peak_mb=memory["total"]
        if memory
        else _median(r.get("peak_cuda_mb") or r["peak_rss_mb"] for r in results),
        memory=memory,
        train_seconds=statistics.median(r["train_seconds"] for r in results),
        n_train=one["n_train"],
        n_validation=one["n_validation"],
    )


def _scores(runs: Mapping[int, Run]) -> dict[int, float]:
    return {seed: run.result["score"] for seed, run in runs.items()}


def _memory(results: list[dict[str, Any]]) -> dict[str, float] | None:
    """Peak tensor bytes by kind, in MB, of the run with the median total, so that the kinds still sum to it; None where a run has none."""
    split = [r.get("peak_memory_mb") for r in results]
    whole = [kinds for kinds in split if isinstance(kinds, dict) and kinds.get("total") is not None]
    if len(whole) < len(split):
        return None
    return sorted(whole, key=lambda kinds: kinds["total"])[(len(whole) - 1) // 2]


def _further(result: dict[str, Any], metric: str) -> float:
    return next(iter(result["scores"].values()))[metric]


def _median(values: Iterable[float | None]) -> float | None:
    """None as soon as one run has none: a median over some of them would mislead."""
    values = list(values)
    return None if any(v is None for v in values) else statistics.median(v for v in values if v is not None)


def _notes(rows: list[Row]) -> list[str]:
    seeds = sorted({row.score.n for row in rows})
    notes = [
        f"Score ± 95 % t interval over seeds (n = {', '.join(map(str, seeds))}); Δ full: paired difference to full "
        "fine-tuning over the same seeds, in points; p: exact McNemar test over validation rows "
        "(with several seeds a row counts once, for the method right on it in more of them), Holm-corrected."
    ]
    if any(row.metric in PROBLEMS["regression"].metrics for row in rows):
        notes.append(
            "Of regression, p is a sign test: a row counts for the method whose prediction is nearer."
        )
    if any(row.p_seeds is not None for row in rows):
        notes.append("p seeds: paired t test over the seeds that both methods have, Holm-corrected.")
    if seeds[0] == 1:
        notes.append("One seed shows nothing about spread: give --seeds 3 or more for intervals.")
    if any(row.verdict == "not shown" for row in rows):
        notes.append("Not shown is not equal: the intervals say how large a difference may still be.")
    if any(row.rows_per_second is None for row in rows):
        notes.append(
            "Runs that shared the machine (--jobs) or took very few steps have no speed: it would mislead."
        )
    if any(row.memory for row in rows):
        notes.append("Peak memory by kind: tensor bytes, the same on CPU and GPU (1 MB = 10⁶ bytes).")
    if not all(row.memory for row in rows):
        notes.append(
            "Peak memory: on a GPU the allocator's; elsewhere resident memory above the level before the model was loaded "
            "(1 MB = 10⁶ bytes)."
        )
    return notes


def _one_answer(runs: list[Run]) -> list[str]:
    names = [run.folder.path.name for run in runs if one_answer(run.predictions)]
    return [
        f"Gave every row the same answer, so learned nothing; a lower learning rate may help: {', '.join(names)}."
    ] * bool(names)


def _published_scores(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    pairs = dict.fromkeys((r["task"], r["model"]) for r in results)
    return [{"task": task, **entry} for task, model in pairs for entry in recipes.published(task, model)]


def _published_lines(results: Iterable[dict[str, Any]]) -> list[str]:
    results = list(results)
    lines: dict[str, None] = {}
    for entry in _published_scores(results):
        name = f"{entry['method']} ({entry['settings']})" if entry["settings"] else entry["method"]
        lines[f"{entry['task']}: {name} {entry['score']:.4g} (published, full task; {entry['source']})"] = (
            None
        )
    for task, model in dict.fromkeys((r["task"], r["model"]) for r in results):
        for note in recipes.published_notes(task, model):
            lines[f"{task}: {note['text']} (published, full task; {note['source']})"] = None
    return list(lines)


def _settings(runs: list[Run], grid: dict[str, Any]) -> dict[str, str]:
    """What was set: said once where every run has it, else with the tasks and methods that have it."""
    said: dict[str, dict[str, dict[str, None]]] = {}
    for run in runs:
        for name, value in run.settings.items():
            cell = f"{run.result['task']} {run.result['method']}"
            said.setdefault(name, {}).setdefault(value, {})[cell] = None
    shown = {
        name: next(iter(values))
        if len(values) == 1
        else "; ".join(f"{', '.join(cells)}: {value}" for value, cells in values.items())
        for name, values in said.items()
    }
    return shown | ({"command": str(grid["command"])} if grid.get("command") else {})


def _warmup(train: dict[str, Any]) -> str:
    least = train.get("warmup_steps")
    return f"warm-up {train['warmup']:g}" + (f" ({least} steps at least)" if least else "")


def _setting(run: dict[str, Any], result: dict[str, Any]) -> dict[str, str]:
    resolved, facts, hardware = run.get("resolved"), run.get("facts") or {}, run.get("hardware") or {}
    shown: dict[str, str] = {"model": result["model"]}
    if resolved:
        train = resolved["train"]
        shown |= {
            "recipe": train["recipe"],
            "training": f"{train['epochs']:g} epochs, batches of {train['batch_size']}, {train['optimizer']}, "
            f"{train['schedule']} schedule, {_warmup(train)}, weight decay {train['weight_decay']:g}",
            "learning rate": f"{train['lr']:g}",
        }
    return shown | {
        "computed in": f"{facts.get('dtype')}, {facts.get('padding')} batches, {facts.get('threads')} threads",
        "machine": f"{hardware.get('processor')}, {hardware.get('cores')} cores, {hardware.get('device')}",
        "versions": ", ".join(f"{name} {number}" for name, number in (run.get("versions") or {}).items()),
    }
