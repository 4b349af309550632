"""Figures as a person would write them."""

import re
from collections.abc import Sequence

from rankwise.report.stats import Estimate


def percent(value: Estimate, *, sign: bool = False) -> str:
    """`86.52 ± 0.81`, in points."""
    mean = f"{100 * value.mean:+.2f}" if sign else f"{100 * value.mean:.2f}"
    return mean if value.half is None else f"{mean} ± {100 * value.half:.2f}"


def share(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"


def count(n: int) -> str:
    return f"{n / 1e6:.3g}M" if n >= 1e6 else f"{n / 1e3:.3g}k" if n >= 1e3 else str(n)


def probability(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def span(values: Sequence[float], unit: str, digits: int = 0) -> str:
    """`1.4×`, or `1.4 to 1.6×` where values differ in what is shown of them."""
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def minus(text: str) -> str:
    """With a minus sign where a number begins with a hyphen."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)
