"""Numbers and lists as a person would write them."""

import re
from collections.abc import Sequence


def share(value: float) -> str:
    """Write a share in percent: 0.03 → `3 %`."""
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"


def count(n: int) -> str:
    """Write a number of parameters in three digits: 1234567 → `1.23M`."""
    return f"{n / 1e6:.3g}M" if n >= 1e6 else f"{n / 1e3:.3g}k" if n >= 1e3 else str(n)


def spread(mean: int, ends: tuple[int, int]) -> str:
    """Write a mean number of parameters, with the lowest and highest where they differ: `31k, 28k to 35k`."""
    low, high = map(count, ends)
    return count(mean) if low == high else f"{count(mean)}, {low} to {high}"


def probability(p: float) -> str:
    """Write a p value with three decimals."""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def clock(seconds: float) -> str:
    """Write a duration: 95.0 → `1:35`; 3700 → `1:01:40`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def listed(names: Sequence[str]) -> str:
    """Join names: `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def span(values: Sequence[float], unit: str, digits: int = 0) -> str:
    """Write `1.4×`, or `1.4 to 1.6×` where the rounded values differ."""
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def minus(text: str) -> str:
    """Replace the hyphen in front of a number by a minus sign."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def flags(text: str) -> str:
    """Write the arguments that a text names as flags: `` `limit_train=` `` → `--limit-train`."""
    return re.sub(r"`([a-z_]+)=`", lambda found: f"--{found[1].replace('_', '-')}", text)
