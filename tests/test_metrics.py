"""Scores against their definitions, counted by hand from the confusion matrix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import RankwiseError
from rankwise.metrics import METRICS, score

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
    assert score(["accuracy", "f1", "mcc"], labels, logits_for(predictions)) == pytest.approx(
        {
            "accuracy": (tp + tn) / len(rows),
            "f1": 2 * tp / (2 * tp + fp + fn) if tp else 0.0,
            "mcc": (tp * tn - fp * fn) / norm if norm else 0.0,
        }
    )


def test_the_headline_comes_first():
    assert list(score(["f1", "accuracy"], np.array([0, 1]), logits_for([0, 1]))) == ["f1", "accuracy"]


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(RankwiseError, match="no metric 'acuracy'.* 'accuracy'") as error:
        score(["acuracy"], np.array([0]), logits_for([0]))
    assert all(name in str(error.value) for name in METRICS)
