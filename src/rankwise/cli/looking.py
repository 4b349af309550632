"""The command `look`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from rankwise.cli.app import Json, command, print_json, say
from rankwise.cli.parameters import in_flags
from rankwise.config import DataOptions, RunConfig, TableOptions
from rankwise.errors import RankwiseError


@command
def look(
    files: Annotated[
        tuple[Path, ...],
        Parameter(
            help="CSV, TSV, JSONL or Parquet: one file, several or a pattern. Default: --task, or --dataset."
        ),
    ] = (),
    /,
    table: TableOptions = TableOptions(),  # noqa: B008 (frozen)
    data: DataOptions = DataOptions(),  # noqa: B008 (frozen)
    *,
    task: str = "movies",
    model: str | None = None,
    out: Annotated[Path | None, Parameter(help="Page to write, such as look.html.")] = None,
    json: Json = False,
) -> None:
    """Look at a table before training: columns, classes, lengths of texts, duplicates, and what looks like a slip.

    Example: rankwise look reviews.csv --text review --label stars --out look.html

    Parameters
    ----------
    task
        A task by name, if no file and no data set is given.
    model
        Count the tokens of this model. Default: minilm, or words where it can't be fetched.
    """
    from dataclasses import replace

    from rankwise import report
    from rankwise.tasks import look as looks
    from rankwise.tasks import tables
    from rankwise.tasks.columns import columns
    from rankwise.tasks.load import load_dataset
    from rankwise.tasks.looking import look_at

    if out is not None:
        report.check_page(out)
    found = []
    if files:
        table = replace(table, train_file=tables.expand(files))
        found = columns(tables.read_tables(files))
        for line in _columns(found):
            say(json, line)
    dataset, seen, fault = None, None, None
    try:
        dataset = load_dataset(RunConfig(task=task, table=table, data=data))
        seen = look_at(dataset, model, data.max_length)
    except RankwiseError as error:
        if not found:
            raise
        fault = error
    notes = [str(fault)] if dataset is None else list(dataset.notes)
    for line in [*(notes if dataset else []), *(looks.lines(seen) if seen else [])]:
        say(json, line)
    if out is not None:
        name = str(files[0]) if len(files) == 1 else dataset.task.name if dataset else f"{len(files)} files"
        report.write_look(out, name, seen, found, [in_flags(note) for note in notes])
        say(json, f"Written: {out}")
    if json:
        print_json(
            {
                "columns": [asdict(column) for column in found],
                "look": seen and seen.to_json(),
                "notes": notes,
            }
        )
    if fault is not None:
        raise fault


def _columns(found: Any) -> list[str]:
    """Write the columns of a table as lines of text."""
    table = [("column", "looks like", "empty", "different", "first value")]
    table += [(c.name[:30], c.kind, f"{c.empty:,}", f"{c.different:,}", c.example) for c in found]
    wide = [max(len(row[i]) for row in table) for i in range(4)]
    return [
        f"{row[0].ljust(wide[0])}  {row[1].ljust(wide[1])}  {row[2].rjust(wide[2])}  {row[3].rjust(wide[3])}  {row[4]}".rstrip()
        for row in table
    ]
