"""Shipped histograms of lengths, and random rows of those lengths."""

import numpy as np
import pytest

from rankwise.bench import lengths
from tiny import CONFIGS


@pytest.mark.parametrize(
    ("task", "rows", "mean"),
    [("sst2", 67_349, 13.3), ("rte", 2_490, 71.2), ("mrpc", 3_668, 53.2), ("qnli", 4_463, 51.2), ("qqp", 17_000, 30.7)],
)  # fmt: skip
def test_shipped_histograms_have_every_row_of_their_task(task, rows, mean):
    counts = lengths.histogram(task)
    assert sum(counts.values()) == rows
    assert sum(n * c for n, c in counts.items()) / rows == pytest.approx(mean, abs=0.06)


def test_drawn_lengths_follow_the_histogram():
    drawn = lengths.draw("qnli", 100_000, np.random.default_rng(0))
    whole = lengths.epoch("qnli", np.random.default_rng(0))
    assert sorted(whole) == sorted(n for n, c in lengths.histogram("qnli").items() for _ in range(c))
    assert np.abs(np.quantile(drawn, [0.1, 0.5, 0.9]) - np.quantile(whole, [0.1, 0.5, 0.9])).max() <= 1
    assert set(lengths.draw("77", 5, np.random.default_rng(0))) == {77}


@pytest.mark.parametrize(
    ("task", "rows", "tokens", "learned"), [("e2e", 4_672, 62.0, 29.0), ("gsm8k", 7_473, 216.8, 126.6)]
)
def test_shipped_histograms_of_language_models_say_how_much_is_learned(task, rows, tokens, learned):
    whole = lengths.epoch(task, np.random.default_rng(0))
    assert len(whole) == rows
    assert whole.mean() == pytest.approx(tokens, abs=0.06)
    assert lengths.labelled(task, whole).mean() == pytest.approx(learned, abs=0.6)


def test_of_other_lengths_a_language_model_learns_every_token_but_a_rows_first():
    assert lengths.labelled("77", np.array([1, 2, 77])).tolist() == [0, 1, 76]
    assert lengths.labelled("e2e", np.array([2, 5000]))[1] == pytest.approx(5000 * 29 / 62, rel=0.02)


def test_the_labels_of_random_rows_are_the_next_tokens_of_their_ends():
    rows = lengths.random_rows(
        np.array([4, 1, 6]), CONFIGS["llama"], np.random.default_rng(0), np.array([2, 0, 5])
    )
    ids = rows.input_ids
    assert rows.token_labels is not None
    assert rows.token_labels.tolist() == [-100, ids[2], ids[3], -100, -100, *ids[6:], -100]
    assert rows.labels_a_row.tolist() == [2, 0, 5]


def test_random_rows_never_hold_the_padding_token():
    config = CONFIGS["roberta"]
    rows = lengths.random_rows(np.array([3, 5000, 1]), config, np.random.default_rng(0))
    assert list(rows.lengths) == [3, 5000, 1]
    assert config.pad_token_id is not None
    assert set(rows.input_ids) == set(range(config.vocab_size)) - {config.pad_token_id}
