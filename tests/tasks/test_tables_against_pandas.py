"""Tables against pandas and pyarrow: the same rows and the same labels, or a sentence.

`--hypothesis-profile exhaustive` tries 2,000 tables a test.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.config import TableOptions
from rankwise.errors import RankwiseError
from rankwise.tasks import custom
from rankwise.tasks.rows import rows_of
from rankwise.tasks.tables import Table, read_table

tried = settings(max_examples=2 * settings.default.max_examples)

cells = st.text(st.sampled_from("ab '\",;\t\n\r.1é\u2028"), max_size=8)
numbers = st.one_of(st.integers(-20, 20), st.floats(-1e6, 1e6, width=32), st.booleans())
frames = st.lists(st.tuples(cells, cells), min_size=1, max_size=8).map(
    lambda rows: pd.DataFrame(rows, columns=["text", "label"])
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tables")


def as_lists(table: Table) -> dict[str, list[Any]]:
    return {name: table.column(name, "") for name in table.columns}


def read_or_none(path: Path) -> Table | None:
    """Read a table; None if it is refused in a sentence."""
    try:
        return read_table(path)
    except RankwiseError:
        return None


@tried
@given(frames, st.sampled_from([",", ";", "\t"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_pandas_writes_is_read(folder, frame, separator, quoting):
    path = folder / ("t.tsv" if separator == "\t" else "t.csv")
    if quoting == csv.QUOTE_MINIMAL:
        frame = frame.map(lambda cell: cell.replace("\r", "\r\n"))  # pandas leaves a lone \r without quotes
    frame.to_csv(path, sep=separator, quoting=quoting, index=False)
    table = read_or_none(path)
    assert quoting == csv.QUOTE_MINIMAL or table is not None
    if table is not None and not any("quotes are read as characters" in note for note in table.notes):
        assert as_lists(table) == frame.to_dict("list")


@tried
@given(frames)
def test_what_pyarrow_writes_is_read(folder, frame):
    columns = pa.Table.from_pandas(frame)
    pq.write_table(columns, folder / "t.parquet")
    assert as_lists(read_table(folder / "t.parquet")) == frame.to_dict("list")
    pa_csv.write_csv(columns, folder / "t.csv")
    assert as_lists(read_table(folder / "t.csv")) == frame.to_dict("list")
    frame.to_json(folder / "t.jsonl", orient="records", lines=True)
    assert as_lists(read_table(folder / "t.jsonl")) == frame.to_dict("list")


lines = st.lists(st.lists(st.text(st.sampled_from('ab" '), max_size=5), min_size=2, max_size=2), max_size=8)


@tried
@given(lines.filter(bool), st.sampled_from([",", "\t"]))
def test_bare_quotes_are_read_as_pandas_reads_them_one_way_or_the_other(folder, rows, separator):
    text = "".join(separator.join(row) + "\n" for row in [["text", "label"], *rows])
    path = folder / ("bare.tsv" if separator == "\t" else "bare.csv")
    path.write_text(text)
    table = read_or_none(path)
    if separator == "\t":
        assert table is not None  # each line is a row
        assert len(table) <= len(rows)
    if table is None:
        return
    readings = []
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        try:
            frame = pd.read_csv(
                io.StringIO(text),
                sep=separator,
                dtype=str,
                keep_default_na=False,
                quoting=quoting,
                index_col=False,
            )
        except (pd.errors.ParserError, pd.errors.ParserWarning):
            continue
        readings.append(frame.to_dict("list"))
    assert as_lists(table) in readings
    if len({len(reading["text"]) for reading in readings}) > 1:
        assert table.notes


@tried
@given(st.lists(numbers, min_size=2, max_size=8))
def test_numbers_are_the_labels_that_pyarrow_reads(folder, column):
    """The same labels from text as from JSONL, and as numbers those of pyarrow."""
    labels = column * 6
    frame = pd.DataFrame(
        {"text": [f"t {i}" for i in range(len(labels))], "label": pd.Series(labels, dtype=object)}
    )
    frame.to_csv(folder / "n.csv", index=False)
    (folder / "n.jsonl").write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    found = []
    for name in ("n.csv", "n.jsonl"):
        table = read_table(folder / name)
        try:
            task, _ = custom._task(table, TableOptions(train_file=(folder / name,)))
            found.append((task.problem, rows_of(table, task, labelled=True)[0].labels))
        except RankwiseError:
            found.append(None)
    if found[0] is None or found[1] is None:
        return
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-6)
    if found[0][0] == "regression":
        expected = np.array(pa.array([float(label) for label in labels], pa.float32()))
        np.testing.assert_allclose(found[0][1], expected, rtol=1e-6)
