"""Paired statistics over finished runs: intervals over seeds, exact tests over examples, and a correction for making several.

Methods are paired by seed (same rows, same order, same new head), so the spread between seeds that both share cancels out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.stats import binomtest, t

from rankwise.errors import RankwiseError

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds with its 95 % t interval; low and high are None where n < 2, because one seed shows no spread."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half the interval's width: mean ± half."""
        return None if self.high is None else self.high - self.mean


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and t interval of independent values (Student 1908).

    Raises:
        ValueError: there are none.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no values to estimate from")
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(mean, None, None, 1)
    half = float(t.ppf(0.5 + LEVEL / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """first − second over the seeds that both have; None where they share none."""
    shared = sorted(first.keys() & second.keys())
    return estimate([first[seed] - second[seed] for seed in shared]) if shared else None


def paired_t(first: Mapping[int, float], second: Mapping[int, float]) -> float | None:
    """Two-sided probability of such a mean difference over the shared seeds, were there none (Student 1908): below 0.05 exactly where
    the interval of `paired_difference` leaves 0 out. None with fewer than two shared seeds."""
    shared = sorted(first.keys() & second.keys())
    if len(shared) < 2:
        return None
    differences = np.array([first[seed] - second[seed] for seed in shared])
    mean, spread = abs(float(differences.mean())), float(differences.std(ddof=1))
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * float(t.sf(mean / (spread / math.sqrt(len(shared))), len(shared) - 1))


@dataclass(frozen=True)
class McNemar:
    """The examples on which one of two methods does better.

    Attributes:
        only_first, only_second: how many; with one seed, those on which only the first (the second) is right, or nearer.
        p: two-sided exact binomial probability of such a split, were both equally good.
        n: examples compared.
    """

    only_first: int
    only_second: int
    p: float
    n: int


def mcnemar(pairs: Sequence[tuple[pa.Table, pa.Table]]) -> McNemar:
    """Exact McNemar test (McNemar 1947) over stored predictions.

    With several seeds an example counts once, for the method that is right on it in more of them (an exact sign test): the same example
    seen by several seeds is no several examples. In regression nobody is right: the example counts for the method whose prediction is
    nearer.

    Args:
        pairs: for each seed the two methods' predictions (idx, label, prediction), of the same examples in all.

    Raises:
        RankwiseError: two tables are not of the same examples.
    """
    ahead: np.ndarray | None = None
    for first, second in pairs:
        wrong_first, wrong_second = _aligned(first, second)
        margin = np.sign(wrong_second - wrong_first).astype(np.int64)
        if ahead is not None and len(ahead) != len(margin):
            raise RankwiseError("Two seeds can't be put together: their validation rows differ in number.")
        ahead = margin if ahead is None else ahead + margin
    if ahead is None:
        raise ValueError("no predictions to compare")
    only_first, only_second = int((ahead > 0).sum()), int((ahead < 0).sum())
    decided = only_first + only_second
    p = float(binomtest(only_first, decided).pvalue) if decided else 1.0
    return McNemar(only_first, only_second, p, len(ahead))


def _aligned(first: pa.Table, second: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """How far each method is off on each example, in the same order: 0 or 1 of classes and sets of labels, else the distance."""
    a, b = (table.sort_by("idx") for table in (first, second))
    for column in ("idx", "label"):
        if not a[column].equals(b[column]):
            raise RankwiseError(
                f"Two runs can't be paired: their predictions differ in {column}, so in their validation rows."
            )
    return _off(a), _off(b)


def _off(predictions: pa.Table) -> np.ndarray:
    label, prediction = predictions["label"], predictions["prediction"]
    if pa.types.is_list(label.type):
        return (np.array(label.to_pylist()) != np.array(prediction.to_pylist())).any(axis=1).astype(float)
    off = np.abs(label.to_numpy() - prediction.to_numpy())
    return off if pa.types.is_floating(label.type) else (off > 0).astype(float)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for being several (Holm 1979), in their own order."""
    order = np.argsort(p_values, kind="stable")
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = largest
    return corrected
