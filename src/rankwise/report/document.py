"""From run folders to what is said about them: one `Row` a task and method, and the sentences that belong beside the table."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise import recipes, stats
from rankwise.errors import RankwiseError
from rankwise.stats import Estimate
from rankwise.store import RunFolder, read_grid, run_folders

REFERENCE = "full"
"""The method the others are compared with."""


@dataclass(frozen=True)
class Row:
    """A task and a method.

    Attributes:
        score: of `metric`, over seeds.
        more: further metrics' means.
        difference: to full fine-tuning, over the seeds both have; None for full itself and where full is missing.
        p: exact McNemar probability against full (over seeds: sign test by example), Holm-corrected over the table.
        trainable, share: trained parameters, and their share of the plain model's.
        adapter_params: of the LoRA matrices alone.
        rows_per_second, peak_mb, train_seconds: medians over seeds; None where they would mislead.
        n_train, n_validation: rows.
    """

    task: str
    method: str
    metric: str
    score: Estimate
    more: dict[str, float]
    difference: Estimate | None
    p: float | None
    trainable: int
    share: float
    adapter_params: int
    rows_per_second: float | None
    peak_mb: float | None
    train_seconds: float
    n_train: int
    n_validation: int


@dataclass(frozen=True)
class Document:
    """A report: its rows, every run's result, and what has to be said with them."""

    out: Path
    rows: list[Row]
    runs: list[dict[str, Any]]
    left_out: list[str]
    notes: list[str]
    published: list[str]
    settings: dict[str, str]


def collect(out: Path) -> Document:
    """Reads every run folder under `out`.

    Raises:
        RankwiseError: there is no such folder, or no finished run in it.
    """
    if not out.is_dir():
        raise RankwiseError(f"{out} is no folder. Name the one that `rankwise compare --out` wrote.")
    folders, left_out = [], []
    results: dict[str, dict[str, Any]] = {}
    for folder in run_folders(out):
        try:
            if not folder.finished:
                left_out.append(_unfinished(folder))
                continue
            results[folder.path.name] = folder.read_result()
            folder.read_predictions()
            folder.read_run()
            folders.append(folder)
        except RankwiseError as error:
            results.pop(folder.path.name, None)
            left_out.append(f"Left out: {error}")
    if not folders:
        raise RankwiseError(" ".join([f"{out} holds no finished run.", *left_out]))
    grid = read_grid(out)
    rows, unpaired = _rows(folders, results, grid)
    return Document(
        out=out,
        rows=rows,
        runs=list(results.values()),
        left_out=left_out,
        notes=[*_notes(rows), *unpaired],
        published=_published(results.values()),
        settings=_settings(folders, results, grid),
    )


def _unfinished(folder: RunFolder) -> str:
    failed = folder.read_run().get("failed")
    return f"{folder.path.name} failed: {failed}" if failed else f"{folder.path.name} is not finished."


def _rows(
    folders: list[RunFolder], results: dict[str, dict[str, Any]], grid: dict[str, Any]
) -> tuple[list[Row], list[str]]:
    """The table's rows, and a sentence for each that can't be compared with full fine-tuning."""
    cells: dict[tuple[str, str], dict[int, RunFolder]] = {}
    for folder in folders:
        result = results[folder.path.name]
        cells.setdefault((result["task"], result["method"]), {})[result["seed"]] = folder
    order = {name: i for i, name in enumerate([*grid.get("tasks", []), *grid.get("methods", [])])}
    ordered = sorted(cells, key=lambda cell: (order.get(cell[0], 99), order.get(cell[1], 99), cell))
    tested: dict[tuple[str, str], float] = {}
    unpaired: dict[tuple[str, str], str] = {}
    for task, method in ordered:
        reference = cells.get((task, REFERENCE), {})
        shared = sorted(cells[task, method].keys() & reference.keys())
        if method != REFERENCE and shared:
            pairs = [
                (cells[task, method][s].read_predictions(), reference[s].read_predictions()) for s in shared
            ]
            try:
                tested[task, method] = stats.mcnemar(pairs).p
            except RankwiseError as error:
                unpaired[task, method] = f"{task} {method} has no difference to full. {error}"
    corrected = dict(zip(tested, stats.holm(list(tested.values())), strict=True))
    rows = [_row(cell, cells, results, corrected.get(cell), paired=cell not in unpaired) for cell in ordered]
    return rows, list(unpaired.values())


def _row(
    cell: tuple[str, str],
    cells: dict[tuple[str, str], dict[int, RunFolder]],
    results: dict[str, dict[str, Any]],
    p: float | None,
    *,
    paired: bool,
) -> Row:
    def of(which: tuple[str, str]) -> dict[int, dict[str, Any]]:
        return {seed: results[folder.path.name] for seed, folder in cells.get(which, {}).items()}

    mine, full = of(cell), of((cell[0], REFERENCE))
    scores, reference = ({s: r["score"] for s, r in runs.items()} for runs in (mine, full))
    one = next(iter(mine.values()))
    further = (
        next(iter(one["scores"].values())).keys() - {one["metric"], "loss"} if one.get("scores") else set()
    )
    return Row(
        task=cell[0],
        method=cell[1],
        metric=one["metric"],
        score=stats.estimate(list(scores.values())),
        more={name: statistics.fmean(_further(r, name) for r in mine.values()) for name in sorted(further)},
        difference=stats.paired_difference(scores, reference) if paired and cell[1] != REFERENCE else None,
        p=p,
        trainable=one["trainable_params"],
        share=one["trainable_params"] / (one["total_params"] - one["adapter_params"]),
        adapter_params=one["adapter_params"],
        rows_per_second=_median(r["samples_per_second"] for r in mine.values()),
        peak_mb=_median(r.get("peak_cuda_mb") or r["peak_rss_mb"] for r in mine.values()),
        train_seconds=statistics.median(r["train_seconds"] for r in mine.values()),
        n_train=one["n_train"],
        n_validation=one["n_validation"],
    )


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
    if seeds[0] == 1:
        notes.append("One seed shows nothing about spread: give --seeds 3 or more for intervals.")
    if any(row.rows_per_second is None for row in rows):
        notes.append(
            "Runs that shared the machine (--jobs) or took very few steps have no speed: it would mislead."
        )
    notes.append(
        "Peak memory: on a GPU the allocator's; elsewhere resident memory above the level before the model was loaded (1 MB = 10⁶ bytes)."
    )
    return notes


def _published(results: Iterable[dict[str, Any]]) -> list[str]:
    lines: dict[str, None] = {}
    for task, model in dict.fromkeys((r["task"], r["model"]) for r in results):
        for entry in recipes.published(task, model):
            name = f"{entry['method']} ({entry['settings']})" if entry["settings"] else entry["method"]
            lines[f"{task}: {name} {entry['score']:.4g} (published, full task; {entry['source']})"] = None
        for note in recipes.published_notes(task, model):
            lines[f"{task}: {note['text']} (published, full task; {note['source']})"] = None
    return list(lines)


def _settings(
    folders: list[RunFolder], results: dict[str, dict[str, Any]], grid: dict[str, Any]
) -> dict[str, str]:
    """What was set: said once where every run has it, else with the tasks and methods that have it."""
    said: dict[str, dict[str, dict[str, None]]] = {}
    for folder in folders:
        result = results[folder.path.name]
        for name, value in _setting(folder.read_run(), result).items():
            said.setdefault(name, {}).setdefault(value, {})[f"{result['task']} {result['method']}"] = None
    shown = {
        name: next(iter(values))
        if len(values) == 1
        else "; ".join(f"{', '.join(cells)}: {value}" for value, cells in values.items())
        for name, values in said.items()
    }
    return shown | ({"command": str(grid["command"])} if grid.get("command") else {})


def _setting(run: dict[str, Any], result: dict[str, Any]) -> dict[str, str]:
    resolved, facts, hardware = run.get("resolved"), run.get("facts") or {}, run.get("hardware") or {}
    shown: dict[str, str] = {"model": result["model"]}
    if resolved:
        train = resolved["train"]
        shown |= {
            "recipe": train["recipe"],
            "training": f"{train['epochs']:g} epochs, batches of {train['batch_size']}, {train['optimizer']}, "
            f"{train['schedule']} schedule, warm-up {train['warmup']:g}, weight decay {train['weight_decay']:g}",
            "learning rate": f"{train['lr']:g}",
        }
    return shown | {
        "computed in": f"{facts.get('dtype')}, {facts.get('padding')} batches, {facts.get('threads')} threads",
        "machine": f"{hardware.get('processor')}, {hardware.get('cores')} cores, {hardware.get('device')}",
        "versions": ", ".join(f"{name} {number}" for name, number in (run.get("versions") or {}).items()),
    }
