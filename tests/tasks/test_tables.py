"""Tables as people really hand them over."""

import bz2
import csv
import gzip
import io
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import RankwiseError
from rankwise.tasks.tables import read_table, read_tables

TABLE = b"text,label\na,1\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def columns_of(path: Path) -> dict[str, list]:
    table = read_table(path)
    return {name: table.column(name, "argument") for name in table.columns}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'text,stars\n"good, really",5\nbad,1\n'),
        ("t.csv", '\ufefftext;stars\r\n"good, really";5\r\nbad;1\r\n'),
        ("t.tsv", "text\tstars\ngood, really\t5\n\nbad\t1"),
        ("t.txt", "text\tstars\ngood, really\t5\nbad\t1\n"),
        ("t.jsonl", '{"text": "good, really", "stars": "5"}\n\n{"stars": "1", "text": "bad"}\n'),
        ("table", '{"text": "good, really", "stars": "5"}\n{"stars": "1", "text": "bad"}\n'),
    ],
)
def test_the_same_table_in_every_text_format(tmp_path, name, content):
    assert columns_of(write(tmp_path / name, content)) == {
        "text": ["good, really", "bad"],
        "stars": ["5", "1"],
    }


def test_parquet_keeps_its_types(tmp_path):
    columns = {"text": ["a", None], "label": [1, 0]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert columns_of(tmp_path / "t.parquet") == columns


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=20))
def test_whatever_csv_writes_is_read_back(tmp_path_factory, rows):
    written = io.StringIO(newline="")
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
    path = write(tmp_path_factory.mktemp("csv") / "t.csv", written.getvalue())
    assert columns_of(path) == {"text": [row[0] for row in rows], "label": [row[1] for row in rows]}


def test_nothing_is_guessed_about_cells(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\nNA,007\ntrue,1.0\n")
    assert columns_of(path) == {"text": ["NA", "true"], "label": ["007", "1.0"]}


def test_a_very_long_text_is_read(tmp_path):
    assert columns_of(write(tmp_path / "t.csv", f"text\n{'x' * 500_000}\n"))["text"] == ["x" * 500_000]


def test_a_row_is_named_by_the_line_it_begins_at(tmp_path):
    table = read_table(write(tmp_path / "t.csv", 'text,label\n"two\nlines",1\n\nb,2\nc,3\n'))
    assert [table.where([row]) for row in range(3)] == ["line 2", "line 5", "line 6"]
    assert table.where(list(range(3))) == "lines 2, 5, 6"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", b"", "t.csv is empty"),
        ("t.jsonl", b" \n\n", "t.jsonl is empty"),
        ("t.csv", b"text,label\n", "has a header and no rows"),
        ("t.csv", "text,label\ngut,1\nschön,0\n".encode("latin-1"), "isn't UTF-8: byte 0xf6 on line 3"),
        ("t.csv", "text,label\na,1\n".encode("utf-16"), "is UTF-16, not UTF-8"),
        ("t.csv", b'{"text": "a"}\n', "isn't CSV: by its content it is JSONL"),
        ("t.csv", b"text\tlabel\na\t1\n", "isn't CSV: by its content it is TSV"),
        ("t.jsonl", b"text,label\na,1\n", "isn't JSONL: by its content it is CSV"),
        ("t.json", b'[{"text": "a"}]', "one JSON array"),
        ("t.parquet", b"text,label\na,1\n", "isn't Parquet: by its content it is CSV"),
        ("t.parquet", b"PAR1 and then nothing of use", "damaged Parquet"),
        ("t.csv", b"PK\x03\x04....", "a zip or Excel file"),
        ("t.csv", b"text,label\na,1\nb, c,0\n", "line 3 has 3 fields where the header has 2"),
        ("t.csv", b'text,label\na,1\n"b,0\nc,1\n', "line 3 can't be read"),
        ("t.csv", b"text,text\na,1\n", "two columns named 'text'"),
        ("t.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 isn't a row in JSON"),
        ("t.jsonl", b'{"text": "a"}\n7\n', "line 2 isn't a JSON object: '7'"),
        ("t.jsonl", b'{"text": "a", "text": "b"}\n', "line 1 isn't a row in JSON: 'text' is there twice"),
        (
            "t.jsonl",
            b'{"text": ' + b"[" * 60_000 + b"]" * 60_000 + b"}\n",
            "line 1 isn't a row in JSON: nested deeper than",
        ),
        ("t.csv", lzma.compress(TABLE), "t.csv is an xz file by its content. Decompress"),
        ("t.csv.bz2", bz2.compress(TABLE), "is a bzip2 file"),
        ("t.csv.bz2", bz2.compress(b""), "is a bzip2 file"),
        ("t.csv.gz", gzip.compress(TABLE, mtime=0), "is a gzip file"),
        ("t.csv.zst", pa.compress(TABLE, "zstd", asbytes=True), "is a Zstandard file"),
        ("t.csv.lz4", pa.compress(TABLE, "lz4", asbytes=True), "is an LZ4 file"),
    ],
    # The content is no name: compressors may write the time of day into it, and workers would collect different tests.
    ids=lambda value: "content" if isinstance(value, bytes) else None,
)
def test_an_error_in_a_file_is_one_line(tmp_path, name, content, says):
    with pytest.raises(RankwiseError) as error:
        read_table(write(tmp_path / name, content))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_parquet_under_another_name_is_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "t.csv")
    with pytest.raises(RankwiseError, match="isn't CSV: by its content it is Parquet"):
        read_table(tmp_path / "t.csv")


def test_a_missing_file_names_what_is_near(tmp_path):
    write(tmp_path / "reviews.csv", "text\na\n")
    write(tmp_path / "notes.md", "")
    with pytest.raises(RankwiseError, match="Nearest in that folder: reviews.csv"):
        read_table(tmp_path / "reviws.csv")
    with pytest.raises(RankwiseError, match="Tables in that folder: reviews.csv"):
        read_table(tmp_path / "zzz.parquet")
    with pytest.raises(RankwiseError, match="the folder .* doesn't exist"):
        read_table(tmp_path / "no" / "reviews.csv")
    with pytest.raises(RankwiseError, match="is a folder"):
        read_table(tmp_path)


def test_a_missing_column_lists_those_that_are_there(tmp_path):
    table = read_table(write(tmp_path / "reviews.csv", "text,stars\na,1\n"))
    with pytest.raises(RankwiseError) as error:
        table.column("label", "label")
    expected = "reviews.csv has no column 'label'. Its columns: text, stars. Say which with `label=`."
    assert str(error.value) == expected


def test_a_quote_at_the_start_of_a_tsv_cell_swallows_no_rows(tmp_path):
    rows = [(f"review {i}", "pos" if i % 2 else "neg") for i in range(200)]
    rows[20], rows[80] = ('"I like it', "pos"), ('It was fine"', "neg")
    lines = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
    table = read_table(write(tmp_path / "t.tsv", lines))
    assert list(zip(table.columns["text"], table.columns["label"], strict=True)) == rows
    assert table.notes == (
        "t.tsv: 200 rows, one a line; quotes are read as characters of the cells. If they enclosed cells, it would be 140 rows.",
    )


@pytest.mark.parametrize("first", ['"never closed', '"closed" too early', '"a ""b"" c', '"'])
def test_quotes_that_enclose_no_cells_are_text_in_tsv(tmp_path, first):
    table = read_table(write(tmp_path / "t.tsv", f"text\tlabel\n{first}\tpos\nb\tneg\n"))
    assert table.columns["text"] == [first, "b"]
    assert "quotes are read as characters of the cells" in table.notes[0]


def test_quotes_around_tsv_cells_are_none_of_the_text(tmp_path):
    table = read_table(write(tmp_path / "t.tsv", 'text\tlabel\n"a\tb ""c"""\tpos\n"d"\tneg\n'))
    assert (table.columns["text"], table.notes) == (['a\tb "c"', "d"], ())
    table = read_table(write(tmp_path / "all.tsv", '"text"\t"label"\n"a\tb\nc"\t"pos"\n'))
    assert (table.columns["text"], table.columns["label"]) == (["a\tb\nc"], ["pos"])


def test_a_row_count_that_depends_on_quotes_is_said(tmp_path):
    lines = 'text,label\n"one, two\nthree",1\nfour,0\n"five\n\nsix",1\n'
    table = read_table(write(tmp_path / "t.csv", lines))
    assert table.columns["text"] == ["one, two\nthree", "four", "five\n\nsix"]
    assert table.notes == ("t.csv: 3 rows on 5 lines; quoted cells hold line breaks (lines 2-3, 5-7).",)
    plain = read_table(write(tmp_path / "plain.csv", 'text,label\n"good, really",5\nbad,1\n'))
    assert plain.notes == ()


def test_a_csv_file_that_is_whole_either_way_is_refused(tmp_path):
    lines = 'text,label\n"I like it,pos\nreview,neg\nIt was fine",neg\nlast,pos\n'
    with pytest.raises(
        RankwiseError,
        match=r"t.csv has 4 rows if quotes are .*, and 2 if they enclose cells \(lines 2-4\)\. Put quotes",
    ):
        read_table(write(tmp_path / "t.csv", lines))
    quoted = read_table(write(tmp_path / "q.csv", lines.replace("text,label", '"text","label"')))
    assert quoted.columns["label"] == ["neg", "pos"]


def test_notes_on_how_files_were_read_are_kept(tmp_path):
    one = write(tmp_path / "one.csv", 'text,label\n"a\nb",1\n')
    two = write(tmp_path / "two.csv", "text,label\nc,0\n")
    notes = read_tables([two, one]).notes
    assert notes == ("one.csv: 1 row on 2 lines; quoted cells hold line breaks (lines 2-3).",)


def test_a_repeated_column_of_parquet_is_named(tmp_path):
    columns = pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"])
    pq.write_table(columns, tmp_path / "t.parquet")
    with pytest.raises(RankwiseError, match=r"^t.parquet has two columns named 'text'; rename one\.$"):
        read_table(tmp_path / "t.parquet")


def test_text_that_begins_like_bzip2_is_text(tmp_path):
    assert columns_of(write(tmp_path / "t.csv", "BZh91,label\na,1\n"))["BZh91"] == ["a"]


def parquet_of(path: Path, column: pa.Array) -> Path:
    pq.write_table(pa.table({"text": ["a"] * len(column), "label": column}), path)
    return path


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**60], pa.timestamp("ms")),
        pa.array([1], pa.timestamp("us", tz="Nowhere/City")),
    ],
    ids=lambda column: str(column.type),
)
def test_a_cell_that_python_has_no_value_for_is_refused(tmp_path, column):
    table = read_table(parquet_of(tmp_path / "t.parquet", column))
    with pytest.raises(RankwiseError, match=r"^t.parquet: column 'label' can't be read \("):
        table.column("label", "label")
    assert table.column("text", "text") == ["a"]


def test_thousands_of_columns_are_named_in_part(tmp_path):
    names = [f"c{i}" for i in range(20_000)]
    for path in (
        write(tmp_path / "t.csv", ",".join(names) + "\n" + ",".join([*names[1:], "x"]) + "\n"),
        write(tmp_path / "t.jsonl", "".join(f'{{"{name}": 1}}\n' for name in names)),
    ):
        with pytest.raises(
            RankwiseError, match="Its columns: c0, c1, .* and 19,970 more. Say which"
        ) as error:
            read_table(path).column("text", "text")
        assert len(str(error.value)) < 500


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    path = tmp_path / "t.csv" if kind == "pipe" else Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(RankwiseError, match="is a device or a pipe; a table is a file"):
        read_table(path)


def test_a_name_that_is_too_long_is_an_error_of_one_line(tmp_path):
    with pytest.raises(RankwiseError, match="can't be read: File name too long"):
        read_tables([tmp_path / ("x" * 300 + ".csv")])
