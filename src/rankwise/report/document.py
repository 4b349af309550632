"""Everything a report says, as plain values: collected once, then written as page, text and JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import RankwiseError
from rankwise.report import notes, published, settings
from rankwise.report.answer import answer
from rankwise.report.cells import Run, by_cell, read
from rankwise.report.curves import Curve, curves
from rankwise.report.examples import Example, disagreements
from rankwise.report.rank_pattern import RankPattern, rank_patterns
from rankwise.report.row import Row
from rankwise.report.rows import rows
from rankwise.run_folder import RunFolder, read_grid, run_folders


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        out: the grid's folder.
        answer: what the grid found, in sentences; the first is the headline.
        rows: one for each task and method.
        runs: result.json of every finished run.
        left_out: a sentence for each run that isn't in the rows, with the reason.
        notes: how to read the table.
        published: published scores as sentences.
        published_scores: the same as data.
        curves: training curves.
        rank_patterns: the ranks of runs that changed them.
        examples: validation rows on which methods disagree.
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
    examples: list[Example]
    settings: dict[str, str]
    planned: int


def collect(out: Path) -> Document:
    """Read every run folder under `out`.

    Raises:
        RankwiseError: there is no such folder, or no finished run in it.
    """
    if not out.is_dir():
        raise RankwiseError(f"{out} is no folder. Name the one that `rankwise compare --out` wrote.")
    folders = run_folders(out)
    runs, left_out = _read(folders)
    if not runs:
        raise RankwiseError(" ".join([f"{out} holds no finished run.", *left_out]))
    grid = read_grid(out)
    cells = by_cell(runs, grid)
    table, unpaired = rows(cells)
    drawn, unread = curves(cells)
    patterns, not_drawn = rank_patterns(cells)
    pairs = published.tasks_and_models(run.result for run in runs)
    described = settings.of_grid((f"{r.result['task']} {r.result['method']}", r.settings) for r in runs)
    if grid.get("command"):
        described["command"] = str(grid["command"])
    return Document(
        out=out,
        answer=answer(table),
        rows=table,
        runs=[run.result for run in runs],
        left_out=left_out,
        notes=[*notes.notes(table), *notes.constant_predictions(runs), *unpaired, *unread, *not_drawn],
        published=published.sentences(pairs),
        published_scores=published.scores(pairs),
        curves=drawn,
        rank_patterns=patterns,
        examples=disagreements(cells),
        settings=described,
        planned=max(len(folders), _planned(grid)),
    )


def _read(folders: list[RunFolder]) -> tuple[list[Run], list[str]]:
    """The finished runs, and a sentence for each of the others."""
    runs, left_out = [], []
    for folder in folders:
        try:
            if folder.finished:
                runs.append(read(folder))
            else:
                left_out.append(_unfinished(folder))
        except RankwiseError as error:
            left_out.append(f"Left out: {error}")
    return runs, left_out


def _unfinished(folder: RunFolder) -> str:
    failed = folder.read_run().get("failed")
    return f"{folder.path.name} failed: {failed}" if failed else f"{folder.path.name} is not finished."


def _planned(grid: dict[str, Any]) -> int:
    return len(grid.get("tasks", [])) * len(grid.get("methods", [])) * grid.get("seeds", 0)
