"""CSV and TSV: which character separates fields, which quotes enclose cells, which rows are no rows."""

from pathlib import Path

import pytest

from own_tables import write
from rankwise.errors import RankwiseError
from rankwise.tasks.tables import read_table


def rows_of(path: Path) -> list[tuple]:
    table = read_table(path)
    return list(zip(*(table.column(name, "") for name in table.columns), strict=True))


@pytest.mark.parametrize("swallowed", [2, 3, 12])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_rows_between_two_bare_quotes_are_never_swallowed(tmp_path, swallowed, separator):
    rows = [(f"row {i}", "pos" if i % 2 else "neg") for i in range(40)]
    rows[5] = (f'"with {separator} in quotes"', "pos")  # so a row a line isn't whole either
    rows[20] = ('"I like it', "pos")
    rows[20 + swallowed - 1] = ('It was fine"', "neg")
    lines = "".join(separator.join(row) + "\n" for row in [("text", "label"), *rows])
    path = write(tmp_path / ("t.tsv" if separator == "\t" else "t.csv"), lines)
    with pytest.raises(
        RankwiseError,
        match=rf"lines 22-{21 + swallowed} are one row if .* and {swallowed} rows if they are characters",
    ):
        read_table(path)


def test_texts_with_line_breaks_and_commas_are_rows(tmp_path):
    lines = 'text,label\n"Hello, world\nGoodbye",pos\n"a, b",neg\n"one, two\n\nthree",neg\nc,pos\n'
    assert rows_of(write(tmp_path / "t.csv", lines)) == [
        ("Hello, world\nGoodbye", "pos"),
        ("a, b", "neg"),
        ("one, two\n\nthree", "neg"),
        ("c", "pos"),
    ]


def test_a_row_whose_cells_all_have_quotes_is_one_row(tmp_path):
    lines = 'text,label\n"one,pos\ntwo,neg\nthree","pos"\nfour,neg\nsix,pos\n"x, y",neg\n'
    rows = rows_of(write(tmp_path / "t.csv", lines))
    assert rows == [("one,pos\ntwo,neg\nthree", "pos"), ("four", "neg"), ("six", "pos"), ("x, y", "neg")]


def test_the_separator_is_found_outside_of_quotes(tmp_path):
    assert rows_of(write(tmp_path / "t.csv", '"a;b;c",label\nx,1\n')) == [("x", "1")]
    assert rows_of(write(tmp_path / "s.csv", '"a,b,c";label\nx;1\n')) == [("x", "1")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=repr)
def test_lines_may_end_in_any_way(tmp_path, end):
    path = tmp_path / "t.csv"
    path.write_bytes(end.join(["text,label", "a; b; c; d; e; f,1", '"b, c",0', ""]).encode())
    assert rows_of(path) == [("a; b; c; d; e; f", "1"), ("b, c", "0")]


def test_a_second_header_is_no_row(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\na,1\ntext,label\nb,0\n")
    with pytest.raises(RankwiseError, match=r"t.csv line 3 is the header again: several files in one\?"):
        read_table(path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a,b,1", "line 2 has 3 fields where the header has 2. Put quotes around texts that hold a comma."),
        ("a", "line 2 has 1 field where the header has 2. Put quotes around texts with line breaks."),
    ],
)
def test_a_ragged_row_is_named(tmp_path, line, says):
    with pytest.raises(RankwiseError, match=says):
        read_table(write(tmp_path / "t.csv", f"text,label\n{line}\n"))
