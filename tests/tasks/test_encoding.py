"""Tables as people really hand them over, and token ids against the tokenizer called one text at a time."""

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rankwise.errors import RankwiseError
from rankwise.tasks.encoding import Rows, encode
from rankwise.tasks.tables import read_table

WORDS = [f"w{i}" for i in range(50)]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def columns_of(path: Path) -> dict[str, list]:
    table = read_table(path)
    return {name: table.column(name, "--flag") for name in table.columns}


# Tables


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


def test_a_row_is_found_again_by_the_line_it_begins_at(tmp_path):
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
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path, name, content, says):
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
        table.column("label", "--label")
    expected = "reviews.csv has no column 'label'. Its columns: text, stars. Say which with --label."
    assert str(error.value) == expected


# Token ids


def fast_tokenizer(*, pair_types: bool = True, stale: bool = False) -> PreTrainedTokenizerFast:
    """Words of `WORDS` between [CLS] and [SEP]; `stale`: truncation and padding switched on in its own file."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    backend.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    if stale:
        backend.enable_truncation(4)
        backend.enable_padding(length=4)
    names = (
        ["input_ids", "token_type_ids", "attention_mask"] if pair_types else ["input_ids", "attention_mask"]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, unk_token="[UNK]")


def rows_of(texts: list[str], pairs: list[str] | None = None) -> Rows:
    return Rows(texts, pairs, np.arange(len(texts)) % 2, np.arange(len(texts)) + 100)


sentences = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)


@given(st.lists(st.tuples(sentences, sentences), min_size=1, max_size=10), st.integers(4, 16), st.booleans())
def test_flat_rows_equal_the_tokenizer_called_one_by_one(texts, max_length, paired):
    first, second = (list(side) for side in zip(*texts, strict=True))
    encoded = encode(rows_of(first, second if paired else None), fast_tokenizer(), max_length)
    plain = fast_tokenizer()
    n_truncated = 0
    for i, (a, b) in enumerate(texts):
        # in lists of one, because a bare empty second text would count as no pair
        alone = plain([a], [b] if paired else None, truncation="longest_first", max_length=max_length)
        begin, end = encoded.offsets[i : i + 2]
        assert encoded.input_ids[begin:end].tolist() == alone["input_ids"][0]
        assert encoded.token_type_ids[begin:end].tolist() == alone["token_type_ids"][0]
        n_truncated += len(plain([a], [b] if paired else None)["input_ids"][0]) > max_length
    assert encoded.offsets[0] == 0
    assert encoded.offsets[-1] == len(encoded.input_ids)
    assert encoded.n_truncated == n_truncated


def test_many_batches_end_to_end():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(2500)]
    encoded = encode(rows_of(texts), fast_tokenizer(), 64)
    assert encoded.lengths.tolist() == [len(text.split()) + 2 for text in texts]
    assert encoded.idx.tolist() == list(range(100, 2600))
    assert encoded.n_truncated == 0


def test_truncation_and_padding_in_the_tokenizers_own_file_are_overridden():
    texts = ["w1", "w1 w2 w3 w4 w5 w6"]
    assert encode(rows_of(texts), fast_tokenizer(stale=True), 64).lengths.tolist() == [3, 8]


def test_token_types_only_where_the_tokenizer_has_them():
    assert encode(rows_of(["w1"], ["w2"]), fast_tokenizer(pair_types=False), 16).token_type_ids is None


def test_a_tokenizer_without_pad_token_will_do():
    tokenizer = fast_tokenizer()
    assert tokenizer.pad_token is None
    assert len(encode(rows_of(["w1 w2", "w3"]), tokenizer, 16)) == 2


@given(st.lists(st.integers(0, 5), max_size=8))
def test_selected_rows_keep_their_tokens_and_labels(chosen):
    texts = ["w1", "w2 w3 w4", "w5 w6", "w7", "w8 w9 w10 w11", "w12"]
    encoded = encode(rows_of(texts, texts), fast_tokenizer(), 16)
    part = encoded.select(np.array(chosen, dtype=np.int64))
    assert len(part) == len(chosen)
    for i, row in enumerate(chosen):
        for name in ("input_ids", "token_type_ids"):
            whole = getattr(encoded, name)[slice(*encoded.offsets[row : row + 2])]
            assert getattr(part, name)[slice(*part.offsets[i : i + 2])].tolist() == whole.tolist()
        assert (part.idx[i], part.labels[i]) == (encoded.idx[row], encoded.labels[row])


def test_no_room_for_text_is_refused():
    with pytest.raises(RankwiseError, match="leaves no room for text beside 3 special tokens"):
        encode(rows_of(["w1"], ["w2"]), fast_tokenizer(), 3)


def test_a_text_without_tokens_is_refused():
    bare = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="[UNK]")
    with pytest.raises(RankwiseError, match="Row 101 gives no tokens"):
        encode(rows_of(["a", " "]), tokenizer, 8)


# The cache of token ids


def same(a, b) -> bool:
    return all(
        np.array_equal(getattr(a, f), getattr(b, f)) for f in ("input_ids", "offsets", "token_type_ids")
    )


def forbid_tokenising(monkeypatch):
    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", None)


def test_a_second_call_reads_what_the_first_wrote(tmp_path, monkeypatch):
    rows = rows_of(["w1 w2", "w3 w4 w5 w6 w7"])
    first = encode(rows, fast_tokenizer(), 6, tmp_path)
    forbid_tokenising(monkeypatch)
    second = encode(rows, fast_tokenizer(), 6, tmp_path)
    assert same(first, second)
    assert second.n_truncated == first.n_truncated == 1
    assert second.labels.tolist() == rows.labels.tolist()


def test_what_the_tokenizer_did_before_does_not_change_the_key(tmp_path):
    tokenizer = fast_tokenizer()
    for _ in range(2):
        encode(rows_of(["w1 w2", "w3 w4 w5 w6 w7"]), tokenizer, 6, tmp_path)
        tokenizer("w1", truncation=True, max_length=3)
    assert len(list((tmp_path / "tokens").iterdir())) == 1


def test_text_tokenizer_and_length_each_have_their_own_entry(tmp_path):
    rows, tokenizer = rows_of(["w1 w2 w3"]), fast_tokenizer()
    encode(rows, tokenizer, 4, tmp_path)
    assert encode(rows, tokenizer, 5, tmp_path).lengths.tolist() == [5]
    assert encode(rows_of(["w1 w2 w3"], ["w4"]), tokenizer, 16, tmp_path).lengths.tolist() == [7]
    assert encode(rows, fast_tokenizer(pair_types=False), 4, tmp_path).token_type_ids is None
    added = fast_tokenizer()
    added.add_tokens(["w1 w2"])
    assert encode(rows, added, 16, tmp_path).lengths.tolist() == [4]


def garble(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-3], lambda _: b"", lambda _: b"junk" * 40, garble]
)
def test_a_damaged_entry_is_made_again(tmp_path, damage, monkeypatch):
    rows = rows_of(["w1 w2", "w3"])
    whole = encode(rows, fast_tokenizer(), 8, tmp_path)
    (file,) = (tmp_path / "tokens").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert same(encode(rows, fast_tokenizer(), 8, tmp_path), whole)
    forbid_tokenising(monkeypatch)
    assert same(encode(rows, fast_tokenizer(), 8, tmp_path), whole)


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path):
    (tmp_path / "tokens").write_text("a file where the folder should be")
    assert len(encode(rows_of(["w1"]), fast_tokenizer(), 8, tmp_path)) == 1
