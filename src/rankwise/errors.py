"""Errors for the person at the keyboard: one sentence says what was found, where, and what to do.

An argument in a message is written as in Python, between backticks: `` `lr=` ``, `` `memory="fast"` ``. The command line shows it as a
flag (`--lr`, `--memory fast`; see `cli.parameters.in_flags`).
"""

from collections.abc import Iterable
from difflib import get_close_matches


class RankwiseError(Exception):
    """An error in the input. The command line prints its message alone and exits with code 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'sst2'? Known: …` for an unknown name, to be put behind the sentence that refuses it."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return f"{guess} Known: {', '.join(known)}."
