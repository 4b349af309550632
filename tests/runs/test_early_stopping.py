"""Rows held out for early stopping: of every label that has two, the same for one seed."""

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

import tiny
from rankwise.errors import RankwiseError
from rankwise.runs.early_stopping import EarlyStopping, hold_out
from rankwise.seeding import stream_seed
from rankwise.tasks.encoding import Rows, encode
from rankwise.tasks.objectives import OBJECTIVES


def rows(labels):
    texts = [f"good film {' '.join(['bad'] * (i % 5))}" for i in range(len(labels))]
    table = Rows(text=texts, text_pair=None, labels=np.array(labels), idx=np.arange(len(labels)))
    return encode(table, tiny.tokenizer(), 64, None)


def split(labels, seed=0, problem="classification"):
    kept, held = hold_out(rows(labels), OBJECTIVES[problem], seed)
    assert sorted([*kept.idx, *held.idx]) == list(range(len(labels)))
    return kept, held


def test_rows_of_usual_data_are_those_of_scikit_learns_stratified_split():
    labels = np.arange(60) % 3
    _, expected = train_test_split(
        np.arange(60), test_size=6, stratify=labels, random_state=stream_seed(5, "held out") % 2**32
    )
    assert split(labels, seed=5)[1].idx.tolist() == sorted(expected)


@pytest.mark.parametrize("singles", [1, 2, 8])
def test_a_label_of_one_row_stays_in_training(singles):
    labels = [*(np.arange(40) % 2), *range(2, 2 + singles)]
    kept, held = split(labels)
    assert set(kept.labels) == set(labels)
    assert len(held) == 4
    assert set(held.labels) == {0, 1}


def test_more_labels_than_held_out_rows():
    labels = np.arange(60) % 30
    kept, held = split(labels)
    assert len(held) == 6
    assert len(kept) == 54


@pytest.mark.parametrize("labels", [[0], [0, 1], [0, 1, 2, 3]])
def test_too_few_rows_are_a_sentence(labels):
    with pytest.raises(RankwiseError, match=r"training rows are too few to hold some out for `patience=`"):
        split(labels)


def test_two_rows_of_one_label_are_enough():
    kept, held = split([0, 0, 1])
    assert held.labels.tolist() == [0]
    assert sorted(kept.labels) == [0, 1]


def test_numbers_need_no_strata():
    labels = np.linspace(0, 1, 25, dtype=np.float32)
    assert len(split(labels, problem="regression")[1]) == 2


def test_it_stops_when_the_smallest_loss_is_old():
    stopping = EarlyStopping(2)
    stops = []
    for loss in (1.0, 0.5, 0.6, 0.4, 0.5, 0.45):
        stopping.add(loss)
        stops.append(stopping.stop)
    assert stops == [False, False, False, False, False, True]
