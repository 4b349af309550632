"""What values options may have. Any other is an error that names the option: `` `lr=` must be a number above 0; it is -1. ``"""

import math
from collections.abc import Callable

from rankwise.errors import RankwiseError

LARGEST = 1e9
"""No setting has a use for a larger number."""
MOST = {
    "epochs": 1e6,
    "lr": 1e40,
    "threads": 1024,
    "jobs": 1024,
    "seeds": 10_000,
    "folds": 1000,
    "seed": 2**63 - 1,
}
"""Settings whose largest number is another one."""
UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
"""Bytes of each unit that a size may be given in."""


def at_least(smallest: float, **settings: float | None) -> None:
    """Require numbers of at least `smallest`, where they are given; see `require`."""
    require(lambda value: smallest <= value < math.inf, f"a number, {smallest} or more", settings)


def above_zero(**settings: float | None) -> None:
    """Require numbers above 0, where they are given; see `require`."""
    require(lambda value: 0 < value < math.inf, "a number above 0", settings)


def share(**settings: float | None) -> None:
    """Require fractions, from 0 to below 1, where they are given; see `require`."""
    require(lambda value: 0 <= value < 1, "a fraction, from 0 to below 1", settings)


def require(holds: Callable[[float], bool], what: str, settings: dict[str, float | None]) -> None:
    """Require something of settings by name, where they are given, and that none is beyond all use.

    Args:
        holds: says whether a value is as required.
        what: describes such values in the error.
        settings: values by name; None is a setting that isn't given.

    Raises:
        RankwiseError: a value isn't as required, or larger than `MOST` or `LARGEST` allows.
    """
    for name, value in settings.items():
        if value is not None and not holds(value):
            raise RankwiseError(f"`{name}=` must be {what}; it is {value}.")
        most = MOST.get(name, LARGEST)
        if value is not None and value > most:
            shown = f"{most:,.0f}" if most < 1e15 else f"{most:g}"
            raise RankwiseError(f"`{name}=` must be {shown} at most; it is {value}.")


def parse_memory(text: str) -> int | str:
    """Read a memory option: return `fast` or `lean` as they are, a size (`2GB`, `500 MB`, `1.5GiB`) as a number of bytes.

    Raises:
        RankwiseError: the text is neither.
    """
    words = text.strip().lower()
    if words in ("fast", "lean"):
        return words
    number = words.rstrip("bikmgt ")
    try:
        size = float(number) * UNITS[words[len(number) :].strip()]
    except (ValueError, KeyError):
        size = -1.0
    if not 0 < size < math.inf:
        raise RankwiseError(f"`memory=` takes fast, lean, or a size such as 2GB or 500MB, not {text!r}.")
    return int(size)
