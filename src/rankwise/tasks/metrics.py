"""Scores of predictions, by scikit-learn and SciPy. To add a metric, put it into `METRICS` and name it in its objective.

labels, predictions (both in the objective's form) ─► {"accuracy": …, "f1": …}
"""

import warnings
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib.util import find_spec
from typing import cast

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, matthews_corrcoef

from rankwise.errors import RankwiseError, nearest

Score = Callable[[np.ndarray, np.ndarray], float]
"""(labels, predictions) → a number; higher is better."""


def _defined(score: Score) -> Score:
    """Make a score 0, without a warning, where it is undefined: for one class alone, or a column that doesn't vary."""

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


METRICS: dict[str, Score] = {
    "accuracy": accuracy_score,
    "balanced_accuracy": _defined(balanced_accuracy_score),
    "f1": _f1("binary"),
    "mcc": _defined(matthews_corrcoef),
    "micro_f1": _f1("micro"),
    "macro_f1": _f1("macro"),
    "pearson": _defined(_pearson),
    "spearman": _defined(_spearman),
}
"""By name. `f1` is that of class 1. With several labels, `accuracy` is the share of rows whose labels are all right."""


ENTITY_METRICS: dict[str, str] = {
    "entity_f1": "f1_score",
    "entity_precision": "precision_score",
    "entity_recall": "recall_score",
}
"""Of entities, whose words and kind must all be right: name → its function in seqeval."""


def check_seqeval() -> None:
    """Check that entities can be scored.

    Raises:
        RankwiseError: seqeval is missing.
    """
    if find_spec("seqeval") is None:
        raise RankwiseError("Scores of entities need seqeval. Install it: pip install 'rankwise[tokens]'.")


def entity_scores(
    metrics: Sequence[str], labels: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return metrics of entities, as CoNLL's own script computes them.

    Args:
        metrics: names in `ENTITY_METRICS`.
        labels: the tags of each row's words: `O`, or `B-`, `I-`, … and the kind of entity.
        predictions: of the same words.

    Raises:
        RankwiseError: seqeval is missing.
    """
    check_seqeval()
    from seqeval import metrics as seqeval  # pyright: ignore[reportMissingImports]  # an extra

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            name: float(getattr(seqeval, ENTITY_METRICS[name])(labels, predictions, zero_division=0))
            for name in metrics
        }


TokenScore = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
"""(mean loss, tokens, tokens predicted right) of each row → a number."""


def _token_mean(losses: np.ndarray, tokens: np.ndarray, right: np.ndarray) -> float:
    return float((losses * tokens).sum() / tokens.sum())


TOKEN_METRICS: dict[str, TokenScore] = {
    "cross_entropy": _token_mean,
    "perplexity": lambda *rows: float(np.exp(min(_token_mean(*rows), 700.0))),
    "token_accuracy": lambda losses, tokens, right: float(right.sum() / tokens.sum()),
}
"""Of language models: means over all tokens that count, in nats; perplexity is e to the cross-entropy."""
LOWER_IS_BETTER = ("cross_entropy", "perplexity", "loss")
"""Metrics of which a lower one is better."""


def token_scores(
    metrics: Sequence[str], losses: np.ndarray, tokens: np.ndarray, right: np.ndarray
) -> dict[str, float]:
    """Return the named metrics of a language model, in the order asked for.

    Args:
        metrics: names in `TOKEN_METRICS`.
        losses: mean loss of each row's tokens that count.
        tokens: their number.
        right: how many of them are predicted.

    Raises:
        RankwiseError: there is no metric of that name, or it is none of language models.
    """
    for name in metrics:
        if name not in TOKEN_METRICS:
            known = {**METRICS, **TOKEN_METRICS}
            raise RankwiseError(
                f"{name} is no metric of generation. Those that are: {', '.join(TOKEN_METRICS)}."
                if name in known
                else f"There is no metric {name!r}.{nearest(name, known)}"
            )
    return {name: TOKEN_METRICS[name](losses, tokens, right) for name in metrics}


def scores(
    metrics: Sequence[str],
    labels: np.ndarray,
    predictions: np.ndarray,
    *,
    problem: str,
    fitting: Collection[str],
) -> dict[str, float]:
    """Return the named metrics, in the order asked for.

    Args:
        metrics: names in `METRICS`.
        labels: in an objective's form.
        predictions: in the same form, of the same rows.
        problem: name of the objective, for the message.
        fitting: names of the metrics that it has.

    Raises:
        RankwiseError: there is no metric of that name, or it is none of this objective's.
    """
    found = {}
    for name in metrics:
        if name not in METRICS:
            raise RankwiseError(f"There is no metric {name!r}.{nearest(name, METRICS)}")
        if name not in fitting:
            those = ", ".join(other for other in METRICS if other in fitting)
            raise RankwiseError(f"{name} is no metric of {problem}. Those that are: {those}.")
        found[name] = float(METRICS[name](labels, predictions))
    return found
