"""Files read in pieces hold the rows of the same files read whole, and the same files are refused."""

import csv
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from own_tables import write
from rankwise.errors import RankwiseError
from rankwise.tasks import streams
from rankwise.tasks.streams import open_stream
from rankwise.tasks.tables import read_tables


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(streams, "ROWS", 3)
    monkeypatch.setattr(streams, "HEAD", 16)


def outcome(read):
    try:
        return read()
    except RankwiseError as error:
        return str(error)


def whole(path):
    table = read_tables([path])
    lines = None if table.lines is None else list(table.lines)
    return {name: table.column(name, "text") for name in table.columns}, lines, table.notes


def in_pieces(path):
    stream = open_stream(path)
    columns, lines = {name: [] for name in stream.columns}, []
    for piece in stream.pieces(None):
        assert not columns or piece.first == len(next(iter(columns.values())))
        for name in columns:
            columns[name] += piece.column(name, "text")
        lines += piece.lines or ()
    assert not columns or stream.rows == len(next(iter(columns.values())))
    return columns, lines or None, stream.notes


CELL = st.text(st.sampled_from('ab",;\t\n\r é'), max_size=5)


@given(
    rows=st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1, max_size=7),
    quoted=st.booleans(),
    tabs=st.booleans(),
)
def test_delimited_files(tmp_path_factory, rows, quoted, tabs):
    content = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    csv.writer(content, delimiter="\t" if tabs else ",", quoting=quoting).writerows([["text", "b"], *rows])
    path = tmp_path_factory.mktemp("t") / ("t.tsv" if tabs else "t.csv")
    path.write_bytes(content.getvalue().encode())
    assert outcome(lambda: in_pieces(path)) == outcome(lambda: whole(path))


@given(
    lines=st.lists(
        st.sampled_from(["a,b", '"a,b"', '"a', 'a"', 'a,"b', 'b",a', '"a","b"', "", "a"]), max_size=9
    ),
    tabs=st.booleans(),
)
def test_any_lines(tmp_path_factory, lines, tabs):
    text = "\n".join(["text,b", *lines])
    path = tmp_path_factory.mktemp("t") / ("t.tsv" if tabs else "t.csv")
    path.write_text(text.replace(",", "\t") if tabs else text)
    assert outcome(lambda: in_pieces(path)) == outcome(lambda: whole(path))


@pytest.mark.parametrize(
    "content",
    [
        '{"a": 1}\n\n{"b": [1, 2], "a": null}\n{}\n{"a": NaN}\n',
        '{"a": 1}\n{"a": 2',
        "[1, 2]\n",
        "{}\n",
        "",
        " \n",
        "\ufeff" + '{"a": "é"}\r\n' * 5,
    ],
)
def test_jsonl(tmp_path, content):
    path = write(tmp_path / "t.jsonl", content)
    assert str(outcome(lambda: in_pieces(path))) == str(outcome(lambda: whole(path)))


@pytest.mark.parametrize(
    "content", [b"text\n" + b"a\n" * 20 + b"\xff\n", "text\na\n".encode("utf-16"), b"a\0\xff"]
)
def test_other_encodings_are_refused_alike(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    assert outcome(lambda: in_pieces(tmp_path / "t.csv")) == outcome(lambda: whole(tmp_path / "t.csv"))


def test_parquet_with_types_and_large_groups(tmp_path):
    table = pa.table({"text": [f"t{i}" for i in range(10)], "n": pa.array(range(10), pa.int16())})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=7)
    assert in_pieces(tmp_path / "t.parquet")[:2] == whole(tmp_path / "t.parquet")[:2]
    stream = open_stream(tmp_path / "t.parquet")
    assert [len(piece) for piece in stream.pieces(["n"])] == [3, 3, 3, 1] or sum(
        map(len, stream.pieces(["n"]))
    ) == 10
    assert streams.arrow_types(stream)["n"] == pa.int16()
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-9])
    assert outcome(lambda: in_pieces(tmp_path / "t.parquet")) == outcome(
        lambda: whole(tmp_path / "t.parquet")
    )


def test_several_files_are_one_table(tmp_path):
    write(tmp_path / "a.csv", "text,n\nx,1\ny,2\n")
    write(tmp_path / "b.csv", "n,text\n3,z\n")
    assert in_pieces(tmp_path / "*.csv")[:2] == whole(tmp_path / "*.csv")[:2]
    write(tmp_path / "c.csv", "text\nw\n")
    with pytest.raises(RankwiseError, match="c.csv has no column 'n', which a.csv has"):
        open_stream(tmp_path / "*.csv")


def test_a_column_of_jsonl_has_a_type_that_holds_every_value(tmp_path):
    rows = ['{"i": 1, "f": 1, "m": 1, "big": 9007199254740993, "none": null}'] * 4
    rows.append('{"i": 2, "f": 0.5, "m": "x", "big": 0.5}')
    types = streams.arrow_types(open_stream(write(tmp_path / "t.jsonl", "\n".join(rows))))
    text = pa.string()
    assert types == {"i": pa.int64(), "f": pa.float64(), "m": text, "big": text, "none": text}
