"""How a score is written and drawn: shares in points of a hundred, losses as they are; and which of two is better."""

from collections.abc import Sequence

from rankwise.report.stats import Estimate
from rankwise.tasks.metrics import LOWER_IS_BETTER


def scale(metric: str) -> float:
    """Return what a score is multiplied by where it is shown."""
    return 1.0 if metric in LOWER_IS_BETTER else 100.0


def better(metric: str) -> int:
    """Return 1 where a higher score is better, −1 where a lower one is."""
    return -1 if metric in LOWER_IS_BETTER else 1


def number(value: float, metric: str, *, sign: bool = False) -> str:
    """Write a score, or a difference of two with its `sign`: `86.52` points, or a loss of `1.2345`."""
    digits = 4 if scale(metric) == 1.0 else 2
    return f"{scale(metric) * value:{'+' if sign else ''}.{digits}f}"


def estimate(value: Estimate, metric: str, *, sign: bool = False) -> str:
    """Write an estimate: `86.52 ± 0.81`."""
    mean = number(value.mean, metric, sign=sign)
    return mean if value.half is None else f"{mean} ± {number(value.half, metric)}"


def drawn(value: float, metric: str) -> float:
    """Return a score as figures show it: 0.5 → 50."""
    return round(scale(metric) * value, 5)


def axis(metric: str) -> str:
    """Return the title of an axis of scores."""
    return metric if scale(metric) == 1.0 else f"{metric} in %"


def of_differences(metrics: Sequence[str]) -> str:
    """Name the unit of differences of these metrics: `in points`, `in cross_entropy`, `in points or in cross_entropy`."""
    units = [metric if scale(metric) == 1.0 else "points" for metric in metrics]
    return " or ".join(f"in {unit}" for unit in sorted(set(units), key=lambda unit: (unit != "points", unit)))
