"""Rows of words with tags: their tokens and labels are those of Transformers' example, and odd rows are refused."""

import json
from itertools import chain

import numpy as np
import pytest
import transformers as hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

import tiny
from own_tables import load_table, write
from rankwise.errors import RankwiseError
from rankwise.tasks import metrics, objectives, words
from rankwise.tasks.encoding import Rows, encode

WORDS = [["good", "bad film", "the"], ["a", "\u200b", "very dull-plot", "fine"], ["not"]]
TAGS = np.array([[2, 0, 1, -100], [0, 1, 2, 0], [1, -100, -100, -100]])


def byte_level(**settings) -> hf.PreTrainedTokenizerFast:
    """A tokenizer as RoBERTa and GPT-2 have it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>"],
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator([" ".join(tiny.WORDS)] * 5, trainer)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(**settings)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<s>")


def of_the_example(tokenizer, rows, tags, max_length) -> tuple[list[list[int]], list[list[int]]]:
    """What `tokenize_and_align_labels` of Transformers' run_ner.py makes of rows."""
    inputs = tokenizer(rows, truncation=True, max_length=max_length, is_split_into_words=True)
    labels = []
    for i, row in enumerate(tags):
        previous, ids = None, []
        for word in inputs.word_ids(batch_index=i):
            ids.append(-100 if word is None or word == previous else int(row[word]))
            previous = word
        labels.append(ids)
    return inputs["input_ids"], labels


def rows_of(rows, tags=None) -> Rows:
    return Rows([words.dump(row) for row in rows], None, tags, np.arange(len(rows)), of_words=True)


@pytest.mark.parametrize("max_length", [64, 5])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (tiny.tokenizer(), tiny.tokenizer()),
        (byte_level(add_prefix_space=False), byte_level(add_prefix_space=True)),
    ],
    ids=["words", "bytes"],
)
def test_tokens_and_labels_are_those_of_transformers_example(ours, theirs, max_length):
    encoded = encode(rows_of(WORDS, TAGS), ours, max_length)
    ids, labels = of_the_example(theirs, WORDS, TAGS, max_length)
    assert encoded.labels is not None
    assert encoded.input_ids.tolist() == list(chain(*ids))
    assert encoded.token_labels.tolist() == list(chain(*labels))
    assert [row[row != -100].tolist() for row in encoded.labels] == [
        [label for label in row if label != -100] for row in labels
    ]
    whole, _ = of_the_example(theirs, WORDS, TAGS, 99)
    assert encoded.n_truncated == sum(len(row) > max_length for row in whole)


def test_a_word_that_normalisation_removes_has_the_token_of_unknown_words():
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    encoded = encode(rows_of(WORDS, TAGS), tokenizer, 64)
    assert (encoded.token_labels != -100).sum() == (TAGS != -100).sum()


def table(tmp_path, *rows):
    return write(tmp_path / "entities.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


GOOD = [{"tokens": ["EU", "rejects", str(i)], "tags": ["B-ORG", "O", "O"]} for i in range(20)]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"tokens": ["a", "b"], "tags": ["O"]},
            "line 21: column 'tokens' has 2 words, and 'tags' has 1 tags",
        ),
        ({"tokens": "a b", "tags": ["O", "O"]}, "line 21: column 'tokens' holds 'a b'; words are a list"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "holds ' '; a word is a string that isn't empty"),
        ({"tokens": ["a"], "tags": "O"}, "column 'tags' holds 'O'; tags are a list in each row"),
        ({"tokens": ["a"], "tags": [None]}, "every word has a tag, and word 1 has none"),
    ],
)
def test_odd_rows_are_refused_with_their_line(tmp_path, row, says):
    with pytest.raises(RankwiseError, match=says):
        load_table(table(tmp_path, *GOOD, row), problem="tokens")


def test_rows_without_words_or_tags_are_left_out_and_counted(tmp_path):
    dataset = load_table(
        table(tmp_path, *GOOD, {"tokens": [], "tags": []}, {"tokens": ["a"]}), problem="tokens"
    )
    assert sum("left out (line" in note for note in dataset.notes) == 2
    assert dataset.task.label_names == ("B-ORG", "O")
    assert dataset.task.metrics[0] == "entity_f1"


def test_tags_that_are_no_entities_are_scored_by_word(tmp_path):
    rows = [{"w": ["a", "dog", str(i)], "pos": ["DET", "NOUN", "NUM"]} for i in range(20)]
    dataset = load_table(table(tmp_path, *rows), problem="tokens", text="w", label=("pos",))
    assert dataset.task.metrics == ("accuracy", "macro_f1")


def test_entities_need_seqeval(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(RankwiseError, match=r"need seqeval. Install it: pip install 'rankwise.tokens.'"):
        load_table(table(tmp_path, *GOOD), problem="tokens")


def test_scores_are_seqevals_over_the_words_that_were_read():
    seqeval = pytest.importorskip("seqeval.metrics")
    names, rng = ["B-A", "B-B", "I-A", "O"], np.random.default_rng(0)
    labels = rng.integers(0, 4, (6, 5))
    labels[:3, 3:] = -100
    logits = rng.normal(size=(6, 5, 4)).astype(np.float32)
    logits[labels == -100] = np.nan
    objective = objectives.named("tokens")
    found = objective.score(("entity_f1", "accuracy"), labels, logits, names)
    real = [row != -100 for row in labels]
    y = [[names[i] for i in row[kept]] for row, kept in zip(labels, real, strict=True)]
    z = [[names[i] for i in row.argmax(1)[kept]] for row, kept in zip(logits, real, strict=True)]
    assert found == {"entity_f1": seqeval.f1_score(y, z), "accuracy": seqeval.accuracy_score(y, z)}
