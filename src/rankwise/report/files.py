"""Writes a report into the grid's folder: `report.html`, `report.md`, `report.json` and `results.parquet`, each replaced atomically."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankwise import inert
from rankwise.errors import RankwiseError
from rankwise.files import replacing
from rankwise.report.document import Document, collect
from rankwise.report.html import html, look_html
from rankwise.report.markdown import markdown
from rankwise.report.table import to_json
from rankwise.runs.claims import Claims
from rankwise.tasks.columns import Column
from rankwise.tasks.look import Look


def write(out: Path, *, live: bool = False) -> Document:
    """Read the runs under `out` and write the report there. One process writes at a time; others wait.

    Args:
        out: the grid's folder.
        live: the page reloads itself, for a grid that is still running.

    Raises:
        RankwiseError: no run has finished, or the folder can't be written.
    """
    if not out.is_dir():
        return collect(out)  # which says so
    with Claims(out) as claims, claims.alone():
        return _write(out, live=live)


def _write(out: Path, *, live: bool) -> Document:
    document = collect(out)
    texts = {
        "report.html": html(document, live=live),
        "report.md": markdown(document),
        "report.json": inert.json(to_json(document), indent=1) + "\n",
    }
    try:
        for name, text in texts.items():
            with replacing(out / name) as partial:
                partial.write_text(text, encoding="utf-8")
        with replacing(out / "results.parquet") as partial:
            pq.write_table(_table([scalars(run) for run in document.runs]), partial)
    except OSError as error:
        raise RankwiseError(f"{out} can't be written: {error.strerror or error}.") from None
    return document


def check_page(out: Path) -> None:
    """Check that a file has the name of a page.

    Raises:
        RankwiseError: it has another.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise RankwiseError(f"{out} isn't the name of a page. Name a file that ends in .html with `out=`.")


def write_look(
    out: Path, name: str, look: Look | None, columns: Sequence[Column], notes: Sequence[str]
) -> None:
    """Write the page of a look at a table to the file `out`; the other arguments are those of `look_html`.

    Raises:
        RankwiseError: the file can't be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as partial:
            partial.write_text(look_html(name, look, columns, notes), encoding="utf-8")
    except OSError as error:
        raise RankwiseError(
            f"{out} can't be written: {error.strerror or error}. Name another file with `out=`."
        ) from None


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    """A table with a column for every name in any row; pyarrow alone would take only the first row's."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({inert.terminal(name): _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    """An array of these values; of their text where they have no type in common, as in runs of several versions."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError):
        return pa.array([None if value is None else inert.terminal(value) for value in values])


def scalars(result: dict[str, Any]) -> dict[str, Any]:
    """Flatten a result.json: its scalar fields, scores as `<split>_<metric>`, and memory by kind as `peak_mb_<kind>`."""
    flat = {name: value for name, value in result.items() if not isinstance(value, dict | list)}
    for split, scores in result.get("scores", {}).items():
        flat |= {f"{split}_{metric}": value for metric, value in scores.items()}
    memory = result.get("peak_memory_mb")
    if isinstance(memory, dict):
        flat |= {f"peak_mb_{kind}": value for kind, value in memory.items()}
    return flat
