"""How good predictions are: beside the score its interval, what always giving one answer would score, each class, and calibration.

    labels, logits ─► Quality ─► lines for a terminal · result.json · the report

The arithmetic is scikit-learn's and SciPy's. Predictions of several runs on the same rows may be pooled; `groups` then says which row each
is of, since predictions of one row are not independent.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from pydantic import TypeAdapter
from scipy.special import expit, softmax
from scipy.stats import binomtest, norm, pearsonr, t
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    confusion_matrix,
    mean_absolute_error,
    precision_recall_fscore_support,
    root_mean_squared_error,
)

from rankwise.tasks import entities
from rankwise.tasks.labels import IGNORED
from rankwise.tasks.metrics import ENTITY_METRICS, METRICS
from rankwise.tasks.objectives import Objective

LEVEL = 0.95
"""Confidence level of intervals."""
RESAMPLES = 200
"""Bootstrap samples of the rows, for metrics whose interval has no formula."""
BINS = 10
"""Bins of confidence, of equal width."""
SHOWN = 6
"""Classes whose confusions a terminal shows as a matrix."""
LISTED = 20
"""Classes that a terminal lists."""


@dataclass(frozen=True)
class ClassQuality:
    """How well one class or label is told apart.

    Attributes:
        name: of the class.
        precision: share of the rows predicted as it that are.
        recall: share of its rows that are predicted as it.
        f1: their harmonic mean.
        support: rows that have it.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities are the shares of right predictions (Guo et al. 2017, arXiv:1706.04599).

    Attributes:
        confidence: mean probability of the prediction in each bin that has any.
        right: share of right predictions there.
        rows: predictions there.
        error: expected calibration error: the mean of |confidence − right|, weighted by the rows.
    """

    confidence: list[float]
    right: list[float]
    rows: list[int]
    error: float


@dataclass(frozen=True)
class Quality:
    """How good predictions are.

    Attributes:
        metric: the headline metric.
        n: rows.
        scores: the headline metric first; then balanced accuracy and macro-F1 of classes, errors of numbers.
        interval: of the headline score, 95 % over rows; None with fewer than two rows.
        baseline: the same scores of giving every row the same answer.
        baseline_answer: that answer.
        classes: one entry each; empty for numbers.
        confusion: rows of class i that are predicted as class j; None unless a row has one class.
        calibration: None for numbers.
        unit: what the support of a class counts: rows, words, or entities.
    """

    metric: str
    n: int
    scores: dict[str, float]
    interval: tuple[float, float] | None
    baseline: dict[str, float]
    baseline_answer: str
    classes: list[ClassQuality]
    confusion: list[list[int]] | None
    calibration: Calibration | None
    unit: str = "rows"

    def __str__(self) -> str:
        return "\n".join(lines(self))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def from_json(stored: Any) -> Quality:
    """Return what `to_json` returned as a quality.

    Raises:
        ValueError: it is something else.
    """
    return TypeAdapter(Quality).validate_python(stored)


def measure(
    objective: Objective,
    metric: str,
    names: Sequence[str],
    labels: np.ndarray,
    logits: np.ndarray,
    *,
    most_frequent: Iterable[str] | None = None,
    groups: np.ndarray | None = None,
) -> Quality | None:
    """Measure predictions. None for an objective without classes or numbers: written texts.

    Args:
        objective: what is learned.
        metric: the headline metric, in `metrics.METRICS`, or of entities.
        names: of the outputs.
        labels: in the objective's form.
        logits: float [rows, outputs], or [rows, words, outputs] where words have labels.
        most_frequent: the answer that training rows have most often. Default: that of `labels`.
        groups: int [rows], the row that each prediction is of, where several runs are pooled.
    """
    if not objective.has_column:
        return None
    if objective.of_words:
        return _of_words(objective, metric, names, labels, logits, most_frequent, groups)
    predictions = objective.predict(logits)
    constant, answer = _constant(objective, names, labels, most_frequent)
    classes, confusion, calibration = [], None, None
    if objective.fewest_names:
        classes = _classes(names, labels, predictions)
        calibration = _calibration(objective, labels, logits)
    if labels.ndim == 1 and objective.fewest_names:
        confusion = confusion_matrix(labels, predictions, labels=range(len(names))).tolist()
    rows = len(labels) if groups is None else len(np.unique(groups))
    return Quality(
        metric=metric,
        n=rows,
        scores=_scores(objective, metric, labels, predictions),
        interval=_interval(metric, labels, predictions, groups),
        baseline=_scores(objective, metric, labels, constant),
        baseline_answer=answer,
        classes=classes,
        confusion=confusion,
        calibration=calibration,
    )


def _of_words(
    objective: Objective,
    metric: str,
    names: Sequence[str],
    labels: np.ndarray,
    logits: np.ndarray,
    most_frequent: Iterable[str] | None,
    groups: np.ndarray | None,
) -> Quality:
    """Measure tags of words: of entities where the metric is, otherwise of single words. Calibration is that of words."""
    labels, predictions = labels[:, : logits.shape[1]], objective.predict(logits)
    words = labels != IGNORED
    each, said = labels[words], predictions[words]
    common = next(iter(most_frequent or ()), names[int(np.bincount(each, minlength=len(names)).argmax())])
    always = np.where(np.isnan(logits), np.nan, np.eye(len(names))[list(names).index(common)])
    wanted = tuple(dict.fromkeys((metric, *objective.metrics_for(names))))
    if metric in ENTITY_METRICS:
        kinds, counts = entities.count(*(_tags(tags, words, names) for tags in (labels, predictions)))
        classes = [_kind(kind, counts[:, i].sum(0)) for i, kind in enumerate(kinds)]
        confusion, unit, score = None, "entities", partial(_entity_score, metric, counts)
    else:
        classes, unit = _classes(names, each, said), "words"
        confusion = confusion_matrix(each, said, labels=range(len(names))).tolist()
        score = partial(_word_score, metric, labels, predictions, words)
    members, scores = _members(len(labels), groups), objective.score(wanted, labels, logits, names)
    interval = None
    if members is not None and len(members) > 1:
        interval = _bootstrap(members, score, scores[metric])
    return Quality(
        metric=metric,
        n=len(labels) if groups is None else len(np.unique(groups)),
        scores=scores,
        interval=interval,
        baseline=objective.score(wanted, labels, always, names),
        baseline_answer=common,
        classes=classes,
        confusion=confusion,
        calibration=_calibration(objective, each, logits[words]),
        unit=unit,
    )


def _entity_score(metric: str, counts: np.ndarray, rows: np.ndarray) -> float:
    return entities.scores(counts[rows].sum((0, 1)))[metric]


def _word_score(
    metric: str, labels: np.ndarray, predictions: np.ndarray, words: np.ndarray, rows: np.ndarray
) -> float:
    kept = words[rows]
    return float(METRICS[metric](labels[rows][kept], predictions[rows][kept]))


def _tags(tags: np.ndarray, words: np.ndarray, names: Sequence[str]) -> list[list[str]]:
    return [[names[int(tag)] for tag in row[kept]] for row, kept in zip(tags, words, strict=True)]


def _kind(name: str, counts: np.ndarray) -> ClassQuality:
    found = entities.scores(counts)
    precision, recall, f1 = (found[f"entity_{metric}"] for metric in ("precision", "recall", "f1"))
    return ClassQuality(name, precision, recall, f1, int(counts[entities.THERE]))


def _scores(
    objective: Objective, metric: str, labels: np.ndarray, predictions: np.ndarray
) -> dict[str, float]:
    found = {metric: float(METRICS[metric](labels, predictions))}
    if not objective.fewest_names:
        return found | {
            "mean_absolute_error": float(mean_absolute_error(labels, predictions)),
            "root_mean_squared_error": float(root_mean_squared_error(labels, predictions)),
        }
    others = ("macro_f1", "balanced_accuracy") if labels.ndim == 1 else ("macro_f1",)
    return found | {name: float(METRICS[name](labels, predictions)) for name in others}


def _constant(
    objective: Objective, names: Sequence[str], labels: np.ndarray, given: Iterable[str] | None
) -> tuple[np.ndarray, str]:
    """Return one answer for every row, and its name: the most frequent class, the labels of most rows, or the mean."""
    if not objective.fewest_names:
        mean = labels.mean()
        return np.full_like(labels, mean), f"{mean:.4g}"
    if labels.ndim == 1:
        counts = np.bincount(labels, minlength=len(names))
        said = next(iter(given or ()), names[int(counts.argmax())])
        return np.full_like(labels, list(names).index(said)), said
    held = labels.mean(axis=0) > 0.5 if given is None else np.isin(names, list(given))
    return np.tile(held.astype(labels.dtype), (len(labels), 1)), ", ".join(np.array(names)[held]) or "none"


def _classes(names: Sequence[str], labels: np.ndarray, predictions: np.ndarray) -> list[ClassQuality]:
    found = precision_recall_fscore_support(
        labels, predictions, labels=range(len(names)), average=None, zero_division=cast(Any, 0.0)
    )
    columns = [np.asarray(column) for column in found]
    return [
        ClassQuality(name, float(p), float(r), float(f), int(n))
        for name, p, r, f, n in zip(names, *columns, strict=True)
    ]


def probabilities(objective: Objective, logits: np.ndarray) -> np.ndarray:
    """Return the probability of each class or label, float64 [rows, outputs]."""
    wide = logits.astype(np.float64)
    return softmax(wide, axis=1) if objective.name in ("classification", "tokens") else expit(wide)


def _calibration(objective: Objective, labels: np.ndarray, logits: np.ndarray) -> Calibration:
    """Compare the probability of what is predicted with how often it is right: of each row's class, or of each label by itself."""
    p = probabilities(objective, logits)
    if labels.ndim == 1:
        confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    else:
        confidence, right = p.ravel(), labels.ravel() > 0
    shares, means = calibration_curve(right, np.clip(confidence, 0, 1), n_bins=BINS, strategy="uniform")
    edges = np.linspace(0, 1, BINS + 1)[1:-1]
    counts = np.bincount(np.searchsorted(edges, confidence), minlength=BINS)
    counts = counts[counts > 0]
    error = float(np.average(np.abs(shares - means), weights=counts))
    return Calibration(means.tolist(), shares.tolist(), counts.tolist(), error)


# ── The interval of a score ───────────────────────────────────────────────────────────────────


def _interval(
    metric: str, labels: np.ndarray, predictions: np.ndarray, groups: np.ndarray | None
) -> tuple[float, float] | None:
    """Return the 95 % interval of a score over rows: Wilson's for shares, Fisher's for Pearson's r, else the bootstrap's
    normal interval (Efron & Tibshirani 1993), which takes few samples."""
    members = _members(len(labels), groups)
    if members is None or len(members) < 2:
        return None
    if metric == "accuracy":
        right = labels == predictions if labels.ndim == 1 else (labels == predictions).all(axis=1)
        return _of_shares(right[members].mean(axis=1), members.shape[1])
    if (
        metric == "pearson"
        and members.shape[1] == 1
        and len(labels) > 3
        and np.ptp(predictions)
        and np.ptp(labels)
    ):
        found = pearsonr(labels.astype(float), predictions.astype(float)).confidence_interval(LEVEL)
        return float(found.low), float(found.high)
    score = METRICS[metric]
    lowest = -1.0 if metric in ("mcc", "pearson", "spearman") else 0.0
    return _bootstrap(
        members,
        lambda rows: float(score(labels[rows], predictions[rows])),
        float(score(labels, predictions)),
        lowest,
    )


def _bootstrap(
    members: np.ndarray, score: Callable[[np.ndarray], float], middle: float, lowest: float = 0.0
) -> tuple[float, float]:
    """Return the bootstrap's normal interval around a score, from the scores of predictions of rows that are drawn."""
    draw = np.random.default_rng(0)
    values = [
        score(members[draw.integers(len(members), size=len(members))].ravel()) for _ in range(RESAMPLES)
    ]
    half = float(norm.ppf(0.5 + LEVEL / 2)) * float(np.std(values, ddof=1))
    return max(lowest, middle - half), min(1.0, middle + half)


def _members(n: int, groups: np.ndarray | None) -> np.ndarray | None:
    """Return the predictions of each row, int [rows, runs]; None where rows differ in their number of predictions."""
    if groups is None:
        return np.arange(n)[:, None]
    _, counts = np.unique(groups, return_counts=True)
    return (
        np.argsort(groups, kind="stable").reshape(len(counts), -1) if len({*counts.tolist()}) == 1 else None
    )


def _of_shares(shares: np.ndarray, runs: int) -> tuple[float, float]:
    """Return the interval of a mean of shares [rows]: Wilson's (1927) for 0s and 1s, else Student's."""
    n = len(shares)
    if runs == 1:
        found = binomtest(int(shares.sum()), n).proportion_ci(LEVEL, method="wilson")
        return float(found.low), float(found.high)
    half = float(t.ppf(0.5 + LEVEL / 2, n - 1)) * float(shares.std(ddof=1)) / n**0.5
    return max(0.0, float(shares.mean()) - half), min(1.0, float(shares.mean()) + half)


# ── In words ──────────────────────────────────────────────────────────────────────────────────


def lines(found: Quality) -> list[str]:
    """Write a quality as lines of text."""
    score, base = found.scores[found.metric], found.baseline[found.metric]
    interval = (
        f" (95 % over rows: {found.interval[0]:.4f} to {found.interval[1]:.4f})" if found.interval else ""
    )
    if found.classes:
        always = f"always {found.baseline_answer!r:.60} gives {base:.4f}"
    else:
        always = f"always {found.baseline_answer} has errors of {found.baseline['mean_absolute_error']:.4g} on average"
    made = [f"{found.metric} {score:.4f}{interval}; {always}."]
    others = [f"{in_words(name)} {v:.4f}" for name, v in found.scores.items() if name != found.metric]
    if found.calibration is not None:
        others.append(f"expected calibration error {found.calibration.error:.4f}")
    return [*made, f"{_capital(', '.join(others))}.", *_table(found)]


def in_words(metric: str) -> str:
    """Write the name of a metric: `macro_f1` → `macro F1`."""
    return metric.replace("_", " ").replace("f1", "F1")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _table(found: Quality) -> list[str]:
    """Write a line for each class, with its confusions where there are few classes; the rarest are left out."""
    if not found.classes:
        return []
    order = sorted(range(len(found.classes)), key=lambda i: -found.classes[i].support)
    shown = order[:LISTED]
    matrix = found.confusion if found.confusion is not None and len(order) <= SHOWN else None
    table = [
        [
            "class",
            "precision",
            "recall",
            "F1",
            found.unit,
            *([] if matrix is None else [f"→ {found.classes[i].name[:16]}" for i in shown]),
        ]
    ]
    for i in shown:
        one = found.classes[i]
        numbers = [f"{value:.3f}" for value in (one.precision, one.recall, one.f1)]
        row = [one.name[:40], *numbers, f"{one.support:,}"]
        table.append(row + ([] if matrix is None else [f"{matrix[i][j]:,}" for j in shown]))
    wide = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    made = [
        f"  {row[0].ljust(wide[0])}  " + "  ".join(c.rjust(w) for c, w in zip(row[1:], wide[1:], strict=True))
        for row in table
    ]
    if len(order) > len(shown):
        made.append(f"  and {len(order) - len(shown):,} more classes")
    if matrix is None and found.confusion is not None:
        made += _confusions(found, found.confusion)
    return made


def _confusions(found: Quality, matrix: list[list[int]]) -> list[str]:
    """Write the most frequent confusions."""
    pairs = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j and n]
    top = sorted(pairs, key=lambda pair: -pair[0])[:5]
    each = [f"{found.classes[i].name} as {found.classes[j].name} {n:,}" for n, i, j in top]
    return [f"  Most often predicted as another: {', '.join(each)}."] if each else []
