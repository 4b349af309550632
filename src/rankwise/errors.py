"""What goes wrong at the keyboard is said in one sentence: what was found, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class RankwiseError(Exception):
    """A sentence for the person at the keyboard. The command line prints it alone and exits with code 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'sst2'? Known: …` for a misspelt name, to be put behind the sentence that refuses it."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return f"{guess} Known: {', '.join(known)}."
