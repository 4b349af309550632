"""Keeps a grid's report fresh while the grid runs."""

import time
from collections.abc import Callable
from pathlib import Path

from rankwise.errors import RankwiseError
from rankwise.report.document import Document
from rankwise.report.files import write
from rankwise.run_folder import read_grid, run_folders

LOOK_SECONDS = 2.0
"""Between two looks at the folder."""


def watch(out: Path, heard: Callable[[Document], None], *, seconds: float = LOOK_SECONDS) -> Document:
    """Writes the report again whenever a run of the grid ends, until every run that was asked for has ended.

    Args:
        out: the grid's folder.
        heard: called with each report written.
        seconds: between two looks.

    Returns:
        The last report.

    Raises:
        RankwiseError: there is no such folder, or it can't be written.
        KeyboardInterrupt: Ctrl-C; the page then stays as it is.
    """
    if not out.is_dir():
        raise RankwiseError(f"{out} is no folder. Name the one that `rankwise compare --out` writes.")
    known, document = None, None
    try:
        while True:
            ended, over = _ended(out)
            if ended != known and (over or any(why is None for _, _, why in ended)):
                document = write(out, live=not over)
                heard(document)
                known = ended
            if over and document is not None:
                return document
            time.sleep(seconds)
    except KeyboardInterrupt:
        if document is not None:
            write(out)  # a page that doesn't wait for more
        raise


def _ended(out: Path) -> tuple[frozenset[tuple[str, int, str | None]], bool]:
    """Each run that has ended (when its result was written, or why it failed), and whether no other was asked for."""
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
