"""Scores against their definitions, counted by hand from the confusion matrix."""

import numpy as np
import pytest
import sklearn.metrics  # noqa: F401 (imported by the first score otherwise, in the time an example may take)
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import RankwiseError
from rankwise.metrics import METRICS, calibrated_cross_entropy, score

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


def noisy_classifier(rows=4000, seed=0):
    """Logits whose softmax is the very distribution that the labels were drawn from."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("factor", [0.2, 1.0, 7.0])
def test_calibrated_cross_entropy_is_blind_to_how_sure_a_classifier_is(factor):
    logits, labels = noisy_classifier()
    found = calibrated_cross_entropy(factor * logits, labels)
    truth = F.cross_entropy(logits, labels, reduction="none")
    assert found.shape == labels.shape
    assert found.mean().item() <= truth.mean().item() + 1e-9
    assert found.mean().item() == pytest.approx(truth.mean().item(), abs=1e-3)


def test_calibrated_cross_entropy_of_logits_that_say_nothing_is_that_of_a_guess():
    logits, labels = noisy_classifier()
    wrong = calibrated_cross_entropy(-logits, labels).mean().item()
    assert wrong == pytest.approx(np.log(3), rel=0.05)
