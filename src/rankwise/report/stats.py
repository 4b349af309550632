"""Paired statistics over finished runs: intervals over seeds, exact tests over examples, and a correction for several tests.

Methods are paired by seed (same rows, same order, same new head), so the spread between seeds that both share cancels out.

The folds of a cross-validation share most of their training rows, so their scores are not independent, and s²/n is too small a variance of
their mean. Here it is (1/n + n_test/n_train)·s²: the corrected resampled t test (Nadeau & Bengio 2003, Machine Learning 52:239-281).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.stats import binomtest, t

from rankwise.errors import RankwiseError

LEVEL = 0.95
"""Confidence level of intervals, and one minus the significance level of tests."""


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds with its 95 % t interval; `low` and `high` are None where n < 2, because one seed shows no spread."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half the interval's width: mean ± half."""
        return None if self.high is None else self.high - self.mean


def estimate(values: Sequence[float], overlap: float = 0.0) -> Estimate:
    """Compute the mean and t interval of values (Student 1908).

    Args:
        values: independent ones, or those of folds.
        overlap: n_test/n_train of folds; 0 for independent values.

    Raises:
        ValueError: there are none.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no values to estimate from")
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(mean, None, None, 1)
    half = float(t.ppf(0.5 + LEVEL / 2, n - 1)) * float(np.std(values, ddof=1)) * math.sqrt(1 / n + overlap)
    return Estimate(mean, mean - half, mean + half, n)


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], overlap: float = 0.0
) -> Estimate | None:
    """Estimate first − second over the seeds (or folds) that both have; None where they share none. `overlap` is that of `estimate`."""
    shared = sorted(first.keys() & second.keys())
    return estimate([first[seed] - second[seed] for seed in shared], overlap) if shared else None


def paired_t(first: Mapping[int, float], second: Mapping[int, float], overlap: float = 0.0) -> float | None:
    """Compute the two-sided p value of a paired t test over the shared seeds (Student 1908).

    It is below 0.05 exactly where the interval of `paired_difference` excludes 0. None with fewer than two shared seeds.
    """
    shared = sorted(first.keys() & second.keys())
    if len(shared) < 2:
        return None
    differences = np.array([first[seed] - second[seed] for seed in shared])
    mean, spread = abs(float(differences.mean())), float(differences.std(ddof=1))
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * float(t.sf(mean / (spread * math.sqrt(1 / len(shared) + overlap)), len(shared) - 1))


@dataclass(frozen=True)
class McNemar:
    """Outcome of a McNemar test.

    Attributes:
        only_first: examples on which the first method does better; with one seed, on which only the first is right (or nearer).
        only_second: the same of the second method.
        p: two-sided exact binomial p value of this split.
        n: number of examples compared.
    """

    only_first: int
    only_second: int
    p: float
    n: int


def mcnemar(pairs: Sequence[tuple[pa.Table, pa.Table]]) -> McNemar:
    """Compute the exact McNemar test (McNemar 1947) over stored predictions.

    With several seeds an example counts once, for the method that is right on it in more of them (an exact sign test), because
    predictions of one example by several seeds are not independent. In regression an example counts for the nearer prediction.

    Args:
        pairs: for each seed both methods' predictions (idx, label, prediction), of the same examples in every seed.

    Raises:
        RankwiseError: two tables are not of the same examples.
    """
    if not pairs:
        raise ValueError("no predictions to compare")
    rows, ahead = None, np.int64(0)
    for first, second in pairs:
        examples, error_first, error_second = _aligned(first, second)
        if rows is not None and len(rows) != len(examples):
            raise RankwiseError("Two seeds can't be combined: their numbers of validation rows differ.")
        if rows is not None and not rows.equals(examples):
            raise RankwiseError("Two seeds can't be combined: they were evaluated on different rows.")
        rows, ahead = examples, ahead + np.sign(error_second - error_first).astype(np.int64)
    only_first, only_second = int((ahead > 0).sum()), int((ahead < 0).sum())
    decided = only_first + only_second
    p = float(binomtest(only_first, decided).pvalue) if decided else 1.0
    return McNemar(only_first, only_second, p, len(pairs[0][0]))


def _aligned(first: pa.Table, second: pa.Table) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Return the examples (idx, label), and compute both methods' errors on each, in the same order."""
    a, b = (table.sort_by("idx") for table in (first, second))
    for column in ("idx", "label"):
        if not a[column].equals(b[column]):
            raise RankwiseError(
                f"Two runs can't be paired: their predictions differ in {column}, so they were made on different rows."
            )
    return a.select(["idx", "label"]), _errors(a), _errors(b)


def _errors(predictions: pa.Table) -> np.ndarray:
    """0 or 1 for classes, sets of labels and tags of words, the distance for numbers [examples]."""
    label, prediction = predictions["label"], predictions["prediction"]
    if pa.types.is_list(label.type):
        both = zip(
            label.to_pylist(), prediction.to_pylist(), strict=True
        )  # rows of two folds may differ in length
        return np.array([one != other for one, other in both], dtype=float)
    distance = np.abs(label.to_numpy() - prediction.to_numpy())
    return distance if pa.types.is_floating(label.type) else (distance > 0).astype(float)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for multiple testing (Holm 1979); their order is kept."""
    order = np.argsort(p_values, kind="stable")
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = largest
    return corrected
