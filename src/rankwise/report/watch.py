"""Keeps a grid's report up to date while the grid runs."""

import time
from collections.abc import Callable
from pathlib import Path

from rankwise.errors import RankwiseError
from rankwise.report.document import Document, NothingFinished
from rankwise.report.files import write
from rankwise.run_folder import read_grid, run_folders

POLL_SECONDS = 2.0
"""Time between two readings of the folder."""


def watch(out: Path, on_report: Callable[[Document], None], *, seconds: float = POLL_SECONDS) -> Document:
    """Write the report again whenever a run of the grid ends, until every run that was asked for has ended.

    Args:
        out: the grid's folder.
        on_report: called with each report after it is written.
        seconds: time between two readings of the folder.

    Returns:
        The last report.

    Raises:
        RankwiseError: there is no such folder, or it can't be written.
        KeyboardInterrupt: Ctrl-C. The page is written once more, so that it no longer reloads itself.
    """
    if not out.is_dir():
        raise RankwiseError(f"{out} is no folder. Name the one that `rankwise compare` writes.")
    reported, document = None, None
    try:
        while True:
            ended, over = _ended(out)
            if ended != reported and (over or any(why is None for _, _, why in ended)):
                reported = ended
                try:
                    document = write(out, live=not over)
                    on_report(document)
                except NothingFinished:  # those that ended can't be read; others may end well
                    if over:
                        raise
            if over and document is not None:
                return document
            time.sleep(seconds)
    except KeyboardInterrupt:
        if document is not None:
            write(out)
        raise


def _ended(out: Path) -> tuple[frozenset[tuple[str, int, str | None]], bool]:
    """List the runs that have ended as (name, time of the result, failure), and say whether all have."""
    ended = []
    for folder in run_folders(out):
        if folder.finished:
            ended.append((folder.path.name, folder.finished_at, None))
            continue
        try:
            failed = folder.read_run().get("failed")
        except RankwiseError as error:
            failed = str(error)
        if failed:
            ended.append((folder.path.name, 0, failed))
    grid = read_grid(out)
    asked = len(grid.get("tasks", [])) * len(grid.get("methods", [])) * grid.get("seeds", 0)
    return frozenset(ended), len(ended) >= max(asked, len(run_folders(out)))
