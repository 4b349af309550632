"""Everything a report says, as plain values: collected once, then written as page, text and JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import RankwiseError
from rankwise.report import notes, published, settings
from rankwise.report.answer import answer, of_one_run
from rankwise.report.cells import Cell, Run, by_cell, distinct, read
from rankwise.report.curves import Curve, curves
from rankwise.report.examples import Example, disagreements
from rankwise.report.qualities import qualities
from rankwise.report.rank_pattern import RankPattern, rank_patterns
from rankwise.report.row import Row
from rankwise.report.rows import rows
from rankwise.report.sizes import Sizes, sizes
from rankwise.report.written import Written, written
from rankwise.run_folder import RunFolder, read_grid, run_folders
from rankwise.tasks import look
from rankwise.tasks.look import Look
from rankwise.tasks.quality import Quality


class NothingFinished(RankwiseError):
    """No run in a folder has ended well so far."""


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        out: the grid's folder, or that of one run.
        answer: what the grid found, in sentences; the first is the headline.
        rows: one for each task and method.
        runs: result.json of every finished run.
        left_out: a sentence for each run that isn't in the rows, with the reason.
        notes: how to read the table.
        published: published scores as sentences.
        published_scores: the same as data.
        curves: training curves.
        rank_patterns: the ranks of runs that changed them.
        sizes: what each smaller size of an adapter loses, of runs that measured it.
        examples: validation rows on which methods disagree.
        written: prompts for which language models write different texts.
        qualities: how good the predictions of each task and method are, over its runs.
        looks: task → a look at its rows, as the first of its runs recorded it.
        settings: what was set, on what machine, with which versions, by which command.
        planned: number of runs that the grid asks for.
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
    rank_patterns: list[RankPattern]
    sizes: list[Sizes]
    examples: list[Example]
    written: list[Written]
    qualities: dict[Cell, Quality]
    looks: dict[str, Look]
    settings: dict[str, str]
    planned: int


def collect(out: Path) -> Document:
    """Read every run folder under `out`.

    Raises:
        RankwiseError: there is no such folder, or no finished run in it.
    """
    if not out.is_dir():
        raise RankwiseError(f"{out} is no folder. Name the one that `rankwise compare` wrote.")
    alone = RunFolder(out)
    folders = [alone] if alone.finished else run_folders(out)
    runs, left_out = _read(folders)
    if not runs:
        raise NothingFinished(" ".join([_nothing_finished(out), *left_out]))
    grid, damage = _grid(out)
    cells = by_cell(runs, grid)
    table, unpaired = rows(cells)
    drawn, unread = curves(cells)
    patterns, not_drawn = rank_patterns(cells)
    smaller, unread_sizes = sizes(cells)
    pairs = published.tasks_and_models(run.result for run in runs)
    looks, unseen = _looks(runs)
    measured, unmeasured = qualities(cells)
    texts, unread_texts = written(cells)
    described = settings.of_grid((f"{r.result['task']} {r.result['method']}", r.settings) for r in runs)
    if grid.get("command"):
        described["command"] = str(grid["command"])
    return Document(
        out=out,
        answer=of_one_run(table[0], measured) if alone.finished else answer(table),
        rows=table,
        runs=[run.result for run in runs],
        left_out=left_out,
        notes=[
            *notes.notes(table),
            *notes.baselines(measured),
            *notes.constant_predictions(runs),
            *notes.different_rows(cells),
            *unpaired,
            *unread,
            *not_drawn,
            *unseen,
            *unread_sizes,
            *unmeasured,
            *unread_texts,
            *damage,
        ],
        published=published.sentences(pairs),
        published_scores=published.scores(pairs),
        curves=drawn,
        rank_patterns=patterns,
        sizes=smaller,
        examples=disagreements(cells),
        written=texts,
        qualities=measured,
        looks=looks,
        settings=described,
        planned=max(len(folders), _planned(grid)),
    )


def _read(folders: list[RunFolder]) -> tuple[list[Run], list[str]]:
    """The finished runs, and a sentence for each of the others."""
    runs: list[Run] = []
    left_out: list[str] = []
    for folder in folders:
        try:
            if folder.finished:
                runs.append(read(folder))
            else:
                left_out.append(_unfinished(folder))
        except RankwiseError as error:
            left_out.append(f"Left out: {error}")
    kept, others = distinct(runs)
    return kept, left_out + others


def _looks(runs: list[Run]) -> tuple[dict[str, Look], list[str]]:
    """The first recorded look at each task's rows, and a sentence for each that can't be read."""
    looks: dict[str, Look] = {}
    notes: list[str] = []
    for run in runs:
        stored, task = run.record.get("look"), run.result["task"]
        if stored is None or task in looks:
            continue
        try:
            looks[task] = look.from_json(stored)
        except ValueError as error:
            why = str(error).splitlines()[0]
            notes.append(f"{run.folder.path / 'run.json'}: what it says of the rows is damaged ({why}).")
    return looks, notes


def _nothing_finished(out: Path) -> str:
    """Say that there is nothing to report on; a run's own folder is not a folder of runs."""
    run = RunFolder(out)
    if run.finished or not run.has_run:
        return f"{out} holds no finished run."
    return f"{out} is the folder of a run that isn't finished. Its log is steps.jsonl; the command that began it continues it."


def _grid(out: Path) -> tuple[dict[str, Any], list[str]]:
    """What the grid was asked for; where that can't be read, nothing and a sentence. The runs say what they are themselves."""
    try:
        return read_grid(out), []
    except RankwiseError as error:
        return {}, [f"Rows stand by name: {error}"]


def _unfinished(folder: RunFolder) -> str:
    failed = folder.read_run().get("failed")
    return f"{folder.path.name} failed: {failed}" if failed else f"{folder.path.name} is not finished."


def _planned(grid: dict[str, Any]) -> int:
    return len(grid.get("tasks", [])) * len(grid.get("methods", [])) * grid.get("seeds", 0)
