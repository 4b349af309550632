"""Scores of a model from its logits, by scikit-learn and SciPy.

logits [rows, outputs] ─► predictions in the labels' form ─► {"accuracy": …, "f1": …}
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
from jaxtyping import Float
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from rankwise.errors import RankwiseError, nearest
from rankwise.tasks.problems import problem_of

Score = Callable[[np.ndarray, np.ndarray], float]
"""(labels, predictions) → a number; higher is better."""


@dataclass(frozen=True)
class Metric:
    """A score, and the problems whose labels and predictions it compares."""

    score: Score
    problems: tuple[str, ...]


def _defined(score: Score) -> Score:
    """0, without a warning, where a score is not defined: one class alone, or a column that doesn't vary, shows no relation."""

    def defined(labels: np.ndarray, predictions: np.ndarray) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = float(score(labels, predictions)) if len(labels) > 1 else 0.0
        return value if np.isfinite(value) else 0.0

    return defined


def _f1(average: str) -> Score:
    return partial(f1_score, average=average, pos_label=1, zero_division=0)  # pyright: ignore[reportReturnType,reportArgumentType]


def _pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    return cast(float, pearsonr(labels.astype(float), predictions.astype(float))[0])


def _spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    return cast(float, spearmanr(labels, predictions)[0])


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy_score, ("classification", "multi-label")),
    "f1": Metric(_f1("binary"), ("classification",)),
    "mcc": Metric(_defined(matthews_corrcoef), ("classification",)),
    "micro_f1": Metric(_f1("micro"), ("classification", "multi-label")),
    "macro_f1": Metric(_f1("macro"), ("classification", "multi-label")),
    "pearson": Metric(_defined(_pearson), ("regression",)),
    "spearman": Metric(_defined(_spearman), ("regression",)),
}
"""By name. `f1` is class 1's; `accuracy` of several labels asks for all of a row's labels and no other."""


def score(
    metrics: Sequence[str], labels: np.ndarray, logits: Float[np.ndarray, "rows outputs"]
) -> dict[str, float]:
    """The named metrics, in the order asked for; by custom the first is the headline.

    Args:
        metrics: names out of `METRICS`.
        labels: in one of the three forms of `problems`.
        logits: of the same rows.

    Raises:
        RankwiseError: no metric has that name, or it is none for such labels.
    """
    problem = problem_of(labels)
    predictions = problem.predict(logits)
    scores = {}
    for name in metrics:
        if name not in METRICS:
            raise RankwiseError(f"There is no metric {name!r}.{nearest(name, METRICS)}")
        if problem.name not in METRICS[name].problems:
            fitting = [other for other, metric in METRICS.items() if problem.name in metric.problems]
            raise RankwiseError(
                f"{name} is no metric of {problem.name}. Those that are: {', '.join(fitting)}."
            )
        scores[name] = float(METRICS[name].score(labels, predictions))
    return scores
