"""Token ids, against the tokenizer called one text at a time; and their cache."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rankwise.errors import RankwiseError
from rankwise.tasks.encoding import Rows, encode

WORDS = [f"w{i}" for i in range(50)]


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


def test_the_tokenizers_own_truncation_and_padding_are_overridden():
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


def same(a, b) -> bool:
    return all(
        np.array_equal(getattr(a, f), getattr(b, f)) for f in ("input_ids", "offsets", "token_type_ids")
    )


def forbid_tokenising(monkeypatch):
    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", None)


def test_a_second_call_reads_the_cache(tmp_path, monkeypatch):
    rows = rows_of(["w1 w2", "w3 w4 w5 w6 w7"])
    first = encode(rows, fast_tokenizer(), 6, tmp_path)
    forbid_tokenising(monkeypatch)
    second = encode(rows, fast_tokenizer(), 6, tmp_path)
    assert same(first, second)
    assert second.n_truncated == first.n_truncated == 1
    assert second.labels.tolist() == rows.labels.tolist()


def test_earlier_tokenizer_calls_do_not_change_the_key(tmp_path):
    tokenizer = fast_tokenizer()
    for _ in range(2):
        encode(rows_of(["w1 w2", "w3 w4 w5 w6 w7"]), tokenizer, 6, tmp_path)
        tokenizer("w1", truncation=True, max_length=3)
    assert len(list((tmp_path / "tokens").iterdir())) == 1


def test_text_tokenizer_and_length_are_parts_of_the_key(tmp_path):
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


def test_an_unwritable_cache_costs_only_time(tmp_path):
    (tmp_path / "tokens").write_text("a file where the folder should be")
    assert len(encode(rows_of(["w1"]), fast_tokenizer(), 8, tmp_path)) == 1
