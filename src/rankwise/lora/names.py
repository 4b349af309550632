r"""How modules are named: by the end of a path, by a whole path, or by a pattern, as PEFT does; and patterns that mean one path only.

    `query`               every module whose path is `query` or ends in `.query`
    `encoder.*\.query`    every module whose path, or a part of it from a point on, matches
    `anchored(path)`      this module and no other: `^encoder\.layer\.0\.query`

A pattern may come from a file. Matching has a time limit, because some patterns take exponential time.
Source: PEFT 0.21, `get_pattern_key`, `check_target_module_exists` and `_set_trainable`.
"""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

import regex

from rankwise.errors import RankwiseError

SECONDS = 1.0
"""A pattern that takes longer for one path is refused; others take microseconds."""
PROCESS_SECONDS = 3.0
"""Limit for one pattern and all paths together, the start of a process included."""


def anchored(path: str) -> str:
    """Return the pattern that only this path matches, wherever PEFT looks for patterns at the end of a path."""
    return f"^{re.escape(path)}"


def ends_in(path: str, names: Collection[str]) -> bool:
    """Return whether a path is one of these names or ends in `.` and one of them."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def parts(path: str) -> Iterable[str]:
    """Return the paths of a module and of all modules around it: `a`, `a.b`, `a.b.c`."""
    names = path.split(".")
    return (".".join(names[:n]) for n in range(1, len(names) + 1))


def matches(pattern: str, path: str, *, anywhere: bool = True) -> bool:
    """Return whether a pattern matches a whole path.

    Args:
        pattern: a regular expression.
        path: of a module.
        anywhere: the part of the path from any point on may match, too.

    Raises:
        RankwiseError: it is no regular expression, or matching takes too long.
    """
    expression = rf"(.*\.)?({pattern})" if anywhere else pattern
    return _match(expression, pattern, path, whole=True) is not None


def check_bounded(patterns: Sequence[str], paths: Sequence[str]) -> None:
    """Check patterns that PEFT will match by itself, without a limit of time; Python's `re` tries them first in another process.

    Raises:
        RankwiseError: one is no regular expression, or matching takes too long.
    """
    unusual = [pattern for pattern in patterns if re.fullmatch(r"[\w.^$\\-]*", pattern) is None]
    for pattern in unusual:
        _compiled(pattern, pattern)
        try:
            subprocess.run(
                [sys.executable, "-I", "-c", AS_PEFT],
                input=json.dumps([pattern, paths]),
                text=True,
                capture_output=True,
                check=False,
                timeout=PROCESS_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise _endless(pattern, PROCESS_SECONDS, f"the paths of {len(paths)} modules") from None


# the program of that process
AS_PEFT = """
import contextlib, json, re, sys, warnings
warnings.simplefilter("ignore")
pattern, paths = json.load(sys.stdin)
for expression in (pattern, rf"(.*\\.)?({pattern})$"):
    with contextlib.suppress(re.error):  # flags may stand at the beginning only
        for path in paths:
            re.match(expression, path), re.fullmatch(expression, path)
"""


def index(path: str, before: str = r"[^.]*") -> int | None:
    """Return the number of the layer that a path is in: the first part that is a number, behind a part that matches `before`.

    Raises:
        RankwiseError: as `matches`.
    """
    found = _match(rf"(?:^|.*?\.){before}\.(\d+)\.", before, path, whole=False)
    return None if found is None else int(found[1])


def _match(expression: str, shown: str, path: str, *, whole: bool) -> "regex.Match[str] | None":
    pattern = _compiled(expression, shown)
    try:
        return (pattern.fullmatch if whole else pattern.match)(path, timeout=SECONDS)
    except TimeoutError:
        raise _endless(shown, SECONDS, path) from None


def _endless(pattern: str, seconds: float, what: str) -> RankwiseError:
    return RankwiseError(
        f"The pattern {pattern!r:.80} takes longer than {seconds:g} s to match {what}. Write it without nested repetitions."
    )


@lru_cache(maxsize=1000)
def _compiled(expression: str, shown: str) -> regex.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sets that will mean something else one day
            re.compile(expression)  # what PEFT would do
            return regex.compile(expression)
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise RankwiseError(f"{shown!r:.80} is neither a module's name nor a pattern: {error}.") from None
