"""Tables as people really hand them over."""

import csv
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import RankwiseError
from rankwise.tasks.tables import read_table


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
        ("t.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 isn't JSON"),
        ("t.jsonl", b'{"text": "a"}\n7\n', "line 2 isn't a JSON object: '7'"),
    ],
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
