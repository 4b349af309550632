"""Scores against their definitions, counted by hand from the confusion matrix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import RankwiseError
from rankwise.tasks.metrics import METRICS
from rankwise.tasks.objectives import OBJECTIVES

CLASSES, LABELS, NUMBERS = (OBJECTIVES[name] for name in ("classification", "multi-label", "regression"))

pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50)


def logits_for(predictions) -> np.ndarray:
    return np.eye(2)[np.array(predictions, dtype=int)]


@given(pairs)
def test_scores_equal_their_definitions(rows):
    labels, predictions = np.array(rows, dtype=np.int64).T
    tp, tn, fp, fn = (
        int(((labels == label) & (predictions == prediction)).sum())
        for label, prediction in ((1, 1), (0, 0), (0, 1), (1, 0))
    )
    norm = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert CLASSES.score(["accuracy", "f1", "mcc"], labels, logits_for(predictions)) == pytest.approx(
        {
            "accuracy": (tp + tn) / len(rows),
            "f1": 2 * tp / (2 * tp + fp + fn) if tp else 0.0,
            "mcc": (tp * tn - fp * fn) / norm if norm else 0.0,
        }
    )


def test_the_headline_comes_first():
    assert list(CLASSES.score(["f1", "accuracy"], np.array([0, 1]), logits_for([0, 1]))) == ["f1", "accuracy"]


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(RankwiseError, match="no metric 'acuracy'.* 'accuracy'") as error:
        CLASSES.score(["acuracy"], np.array([0]), logits_for([0]))
    assert all(name in str(error.value) for name in METRICS)


def test_regression_is_scored_by_correlation():
    labels = np.array([0.0, 1.0, 2.5, 4.0, 4.5], dtype=np.float32)
    logits = np.array([[0.3], [0.1], [2.0], [5.0], [4.0]], dtype=np.float32)
    centred = [x - x.mean() for x in (labels, logits[:, 0])]
    pearson = (centred[0] @ centred[1]) / np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    ranks = [np.argsort(np.argsort(x)) for x in (labels, logits[:, 0])]
    spearman = 1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum() / (5 * (25 - 1))
    assert NUMBERS.score(["pearson", "spearman"], labels, logits) == pytest.approx(
        {"pearson": pearson, "spearman": spearman}
    )


def test_a_constant_has_no_correlation():
    labels = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    assert NUMBERS.score(["pearson", "spearman"], labels, np.ones((3, 1))) == {
        "pearson": 0.0,
        "spearman": 0.0,
    }
    assert NUMBERS.score(["pearson"], labels[:1], np.ones((1, 1))) == {"pearson": 0.0}


@given(st.lists(st.tuples(*[st.booleans()] * 4), min_size=1, max_size=30))
def test_multi_label_scores_equal_their_definitions(rows):
    """Two labels a row, and what is said of them."""
    table = np.array(rows, dtype=np.float32)
    labels, said = table[:, :2], table[:, 2:]
    hits, wrong = (labels * said).sum(axis=0), (labels != said).sum(axis=0)

    def f1(hit, off):
        return 2 * hit / (2 * hit + off) if hit else 0.0

    assert LABELS.score(["micro_f1", "macro_f1", "accuracy"], labels, 2 * said - 1) == pytest.approx(
        {
            "micro_f1": f1(hits.sum(), wrong.sum()),
            "macro_f1": np.mean([f1(h, w) for h, w in zip(hits, wrong, strict=True)]),
            "accuracy": (labels == said).all(axis=1).mean(),
        }
    )


def test_a_metric_of_another_objective_is_refused():
    with pytest.raises(
        RankwiseError, match="accuracy is no metric of regression. Those that are: pearson, spearman"
    ):
        NUMBERS.score(["accuracy"], np.array([0.5], dtype=np.float32), np.ones((1, 1)))
