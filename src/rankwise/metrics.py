"""Scores of a classifier from its logits, by scikit-learn: accuracy, F1 of class 1 and Matthews' correlation.

logits [rows, classes] ─► argmax ─► predictions [rows] ─► {"accuracy": …, "f1": …}
"""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int64
from scipy.optimize import minimize_scalar
from torch import Tensor

from rankwise.errors import RankwiseError, nearest

# scikit-learn takes a second to import, which a plan and a help page don't need.


def _accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def _f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return f1_score(labels, predictions, pos_label=1, zero_division=0)  # pyright: ignore[reportArgumentType]


def _mcc(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings():  # one class alone gives 0, by definition and without a warning
        warnings.simplefilter("ignore")
        return matthews_corrcoef(labels, predictions)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "mcc": _mcc,
}
"""Name of a metric → function of (labels, predictions)."""


def score(
    metrics: Sequence[str], labels: Int64[np.ndarray, "rows"], logits: Float[np.ndarray, "rows classes"]
) -> dict[str, float]:
    """The named metrics, in the order asked for; by custom the first is the headline.

    Args:
        metrics: names out of `METRICS`.
        labels: the true class of each row.
        logits: the highest one is the prediction.

    Raises:
        RankwiseError: no metric has that name.
    """
    predictions = logits.argmax(axis=1)
    scores = {}
    for name in metrics:
        if name not in METRICS:
            raise RankwiseError(f"There is no metric {name!r}.{nearest(name, METRICS)}")
        scores[name] = float(METRICS[name](labels, predictions))
    return scores


def calibrated_cross_entropy(
    logits: Float[Tensor, "rows classes"], labels: Int64[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Cross-entropy of each row, at the temperature that is best for all of them together (Guo et al. 2017, section 4.2).

    It is blind to how sure a classifier is of itself, and sees what accuracy sees, without accuracy's steps.
    """
    logits = logits.double()

    def mean(log_scale: float) -> float:
        return F.cross_entropy(logits * math.exp(log_scale), labels).item()

    log_scale = minimize_scalar(mean, bounds=(-4.0, 4.0), method="bounded").x  # pyright: ignore[reportAttributeAccessIssue]
    return F.cross_entropy(logits * math.exp(log_scale), labels, reduction="none")
