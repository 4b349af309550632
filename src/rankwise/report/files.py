"""What a report leaves in the grid's folder: `report.md` and `results.parquet`, each replaced whole."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankwise.errors import RankwiseError
from rankwise.report.document import Document, collect
from rankwise.report.table import HEADERS, cells


def write(out: Path) -> Document:
    """Reads the runs under `out` and writes `report.md` and `results.parquet` there.

    Raises:
        RankwiseError: no finished run, or the folder can't be written.
    """
    document = collect(out)
    try:
        partial = out / "report.md.partial"
        partial.write_text(markdown(document), encoding="utf-8")
        partial.replace(out / "report.md")
        partial = out / "results.parquet.partial"
        pq.write_table(_table([scalars(run) for run in document.runs]), partial)
        partial.replace(out / "results.parquet")
    except OSError as error:
        raise RankwiseError(f"{out} can't be written: {error.strerror or error}.") from None
    return document


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    """A column for every name that any row has; pyarrow alone would take the first row's."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def scalars(result: dict[str, Any]) -> dict[str, Any]:
    """The scalar fields of a result.json, with the scores of each split as `<split>_<metric>`."""
    flat = {name: value for name, value in result.items() if not isinstance(value, dict | list)}
    for split, scores in result.get("scores", {}).items():
        flat |= {f"{split}_{metric}": value for metric, value in scores.items()}
    return flat


def markdown(document: Document) -> str:
    """The report as Markdown."""
    tasks = {(row.task, row.n_train, row.n_validation) for row in document.rows}
    lines = ["# Comparison", ""]
    lines += [f"| {' | '.join(HEADERS)} |", f"|{'---|' * len(HEADERS)}"]
    lines += [f"| {' | '.join(_escaped(cell) for cell in cells(row))} |" for row in document.rows]
    lines += ["", *(f"- {_escaped(note)}" for note in document.notes)]
    lines += [
        f"- {_escaped(task)}: {n:,} training rows, {m:,} validation rows." for task, n, m in sorted(tasks)
    ]
    if document.published:
        lines += ["", "## Published", "", *(f"- {_escaped(line)}" for line in document.published)]
    if document.left_out:
        lines += ["", "## Left out", "", *(f"- {_escaped(line)}" for line in document.left_out)]
    lines += [
        "",
        "## Settings",
        "",
        *(f"- {name}: {_escaped(value)}" for name, value in document.settings.items()),
    ]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Text that comes from data or folders, harmless inside a Markdown table."""
    for character in "\\`|<>[]*_~#&":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
