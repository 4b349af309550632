"""Tables against pandas and pyarrow: the same rows and the same labels, or a sentence.

`--hypothesis-profile exhaustive` tries 2,000 tables a test.
"""

import csv
import io
import itertools
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

from rankwise.config import ProblemName, TableOptions, TrainOptions
from rankwise.errors import RankwiseError
from rankwise.tasks import custom, mappings, objectives
from rankwise.tasks.encoding import Rows
from rankwise.tasks.rows import rows_of
from rankwise.tasks.table import Table
from rankwise.tasks.tables import read_table, read_tables

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


def read_as_task(
    *files: Path, problem: ProblemName | None = None
) -> tuple[str, tuple[str, ...], Rows] | None:
    """Return the problem, the names of the outputs and the rows of files to train on; None if they are refused in a sentence."""
    try:
        table = read_tables(files)
        task, _ = custom._task(table, TableOptions(train_file=files, problem=problem), TrainOptions())
        return task.problem, task.label_names, rows_of(table, task)[0]
    except RankwiseError:
        return None


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
    one, other = (read_as_task(folder / name) for name in ("n.csv", "n.jsonl"))
    if one is None or other is None:
        return
    assert one[:2] == other[:2]
    read = np.asarray(one[2].labels)
    np.testing.assert_allclose(read, np.asarray(other[2].labels), rtol=1e-6)
    if one[0] == "regression":
        expected = np.array(pa.array([float(label) for label in labels], pa.float32()))
        np.testing.assert_allclose(read, expected, rtol=1e-6)


pieces = st.sampled_from(
    ["a", "b", '"', '""', ",", ";", "\t", "\n", "\r\n", "\r", " ", "\u00a0", "\u2028", "\ufeff", "é", "1e3"]
)
files = st.lists(pieces, max_size=25).map("".join)


@tried
@given(files, st.sampled_from([",", ";", "\t"]))
@pytest.mark.filterwarnings("ignore:Length of header")
def test_any_text_is_read_as_pandas_reads_it_or_refused(folder, body, separator):
    text = f"text{separator}label\n{body}"
    path = folder / ("any.tsv" if separator == "\t" else "any.csv")
    path.write_bytes(text.encode())
    table = read_or_none(path)
    if table is None:
        return
    readings = []
    for engine, quoting in itertools.product(("c", "python"), (csv.QUOTE_MINIMAL, csv.QUOTE_NONE)):
        try:  # the fast engine loses the row of "text,label\n\r,"
            frame = pd.read_csv(
                path,
                sep=separator,
                dtype=str,
                keep_default_na=False,
                quoting=quoting,
                index_col=False,
                engine=engine,
            )
        except (pd.errors.ParserError, pd.errors.ParserWarning):
            continue
        if frame.notna().all(axis=None):  # pandas fills short rows up
            readings.append(frame.to_dict("list"))
    assert as_lists(table) in readings


words = [
    "a",
    "b",
    " a ",
    "\u00a0b",
    "NA",
    "null",
    "nan",
    "",
    "007",
    "7",
    "1.0",
    "1e3",
    "1000",
    "True",
    "true",
    "0.5",
    "é",
]
mixed = st.one_of(
    st.sampled_from(words),
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([1e22, 1e3, 0.5, -2.0, 1e-7]),
)


@tried
@given(st.lists(mixed, min_size=2, max_size=6), st.sampled_from(["classification", "regression", None]))
def test_every_way_to_give_a_column_gives_the_same_labels(folder, column, problem):
    """As CSV, TSV and JSONL, and as rows and a data frame in Python."""
    labels = column * 5
    frame = pd.DataFrame(
        {"text": [f"t {i}" for i in range(len(labels))], "label": pd.Series(labels, dtype=object)}
    )
    frame.to_csv(folder / "w.csv", index=False)
    frame.to_csv(folder / "w.tsv", index=False, sep="\t")
    (folder / "w.jsonl").write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    found = [read_as_task(folder / f"w.{kind}", problem=problem) for kind in ("csv", "tsv", "jsonl")]
    for one, other in itertools.pairwise(found):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one[:2] == other[:2]
            np.testing.assert_array_equal(one[2].labels, other[2].labels)
            assert one[2].text == other[2].text
    if found[0] is None:
        return
    problem, names, rows = found[0]
    labelled = frame.iloc[rows.idx]
    for table in (labelled, labelled.to_dict("records")):
        read = mappings.read(table, mappings.Columns(), objectives.named(problem), names)
        np.testing.assert_array_equal(read.labels, rows.labels)


def arrays(
    kind: pa.DataType, values: st.SearchStrategy, stored: pa.DataType | None = None
) -> st.SearchStrategy:
    """Columns of a type, from values of it, or from the numbers that it is stored as."""
    columns = st.lists(values, min_size=2, max_size=6)
    return columns.map(lambda v: pa.array(v * 6, stored or kind).cast(kind))


numbers_in_time = st.integers(0, 20_000)
typed = st.one_of(
    *(
        arrays(kind, st.sampled_from(["a", "b", "", None]))
        for kind in (pa.string(), pa.large_string(), pa.string_view())
    ),
    *(arrays(kind, st.one_of(st.integers(0, 5), st.none())) for kind in (pa.int8(), pa.int64(), pa.uint32())),
    *(arrays(kind, st.one_of(st.floats(width=32), st.none())) for kind in (pa.float32(), pa.float64())),
    *(
        arrays(kind, numbers_in_time, pa.int64())
        for kind in (pa.timestamp("s"), pa.timestamp("ns"), pa.duration("s"))
    ),
    *(arrays(kind, numbers_in_time, pa.int32()) for kind in (pa.date32(), pa.time32("s"))),
    arrays(pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["x", "y", None])),
    arrays(pa.bool_(), st.one_of(st.booleans(), st.none())),
    arrays(pa.decimal128(5, 2), st.one_of(st.decimals(0, 9, places=2), st.none())),
    arrays(pa.list_(pa.string()), st.lists(st.sampled_from("xyz"), unique=True)),
    arrays(pa.struct([("a", pa.int8())]), st.just({"a": 1})),
    arrays(pa.binary(), st.sampled_from([b"a", b"b"])),
)


@tried
@given(typed)
def test_parquet_labels_of_any_type_are_those_that_pyarrow_reads_or_refused(folder, column):
    path = folder / "typed.parquet"
    pq.write_table(pa.table({"text": [f"t {i}" for i in range(len(column))], "label": column}), path)
    found = read_as_task(path)
    if found is None:
        return
    (problem, names, rows), truth = found, pq.read_table(path)["label"].to_pylist()
    kept = [i for i, value in enumerate(truth) if value is not None and value == value and value != ""]
    assert rows.idx.tolist() == kept
    labels = np.asarray(rows.labels)
    if problem == "regression":
        np.testing.assert_array_equal(labels, np.array([float(truth[i]) for i in kept], np.float32))
    elif problem == "multi-label":
        assert [{names[j] for j in np.flatnonzero(row)} for row in labels] == [set(truth[i]) for i in kept]
    else:
        read = {"True": True, "False": False} if isinstance(truth[kept[0]], bool) else {}
        same = [read.get(names[y], type(truth[i])(names[y])) for i, y in zip(kept, labels, strict=True)]
        assert same == [truth[i] for i in kept]


@tried
@given(typed)
def test_parquet_texts_of_any_type_are_those_that_pandas_writes_or_refused(folder, column):
    path = folder / "texts.parquet"
    pq.write_table(pa.table({"text": column, "label": ["u", "v"] * (len(column) // 2)}), path)
    found = read_as_task(path)
    if found is None:
        return
    truth = pd.Series(pq.read_table(path)["text"].to_pylist(), dtype=object).dropna().astype(str)
    truth = truth[truth != ""]
    assert found[2].idx.tolist() == truth.index.tolist()
    assert found[2].text == truth.tolist()


parts = st.lists(
    st.tuples(
        st.sampled_from(["csv", "tsv", "jsonl", "parquet"]),
        st.permutations(["text", "label", "more"]).flatmap(lambda names: st.sampled_from([names, names[:2]])),
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=4,
)


@tried
@given(parts)
def test_several_files_are_the_rows_that_pandas_puts_together(folder, parts):
    frames, paths = [], []
    for i, (kind, names, n) in enumerate(parts):
        frame = pd.DataFrame({name: [f"{name[0]}{i}{j}" for j in range(n)] for name in names})
        path = folder / f"part-{i}.{kind}"
        if kind == "parquet":
            frame.to_parquet(path, index=False)
        elif kind == "jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            frame.to_csv(path, index=False, sep="," if kind == "csv" else "\t")
        frames.append(frame)
        paths.append(path)
    try:
        table = read_tables(paths)
    except RankwiseError:
        assert len({frozenset(names) for _, names, _ in parts}) > 1
        return
    assert as_lists(table) == pd.concat(frames).to_dict("list")
