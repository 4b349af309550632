"""The task `movies`: movie-review sentences and the sign of their human sentiment rating, from a Python package instead of the hub.

Source: Hutto & Gilbert, VADER, ICWSM 2014.
"""

from pathlib import Path

import numpy as np

from rankwise.downloads import MOVIES
from rankwise.errors import RankwiseError, nearest
from rankwise.tasks.encoding import Rows
from rankwise.tasks.objectives import OBJECTIVES
from rankwise.tasks.splits import stratified_split

NEUTRAL = 0.3
"""Smallest absolute rating of a kept sentence. 10,318 of 10,605 sentences remain."""
VALIDATION = 0.15
"""Share of the sentences to validate on."""


def load_movies(split: str, folder: Path | None = None) -> tuple[Rows, tuple[str, ...]]:
    """Return the sentences of a split (`train` or `validation`); `folder` is not used.

    Raises:
        RankwiseError: there is no such split, or the sentences can't be fetched.
    """
    lines = MOVIES.path().read_text(encoding="utf-8").splitlines()
    idx, ratings, texts = zip(*(line.split("\t") for line in lines), strict=True)
    rating = np.array(ratings, dtype=float)
    rows = Rows(list(texts), None, (rating > 0).astype(np.int64), np.array(idx, dtype=np.int64))
    train, validation = stratified_split(
        rows.select(np.flatnonzero(np.abs(rating) >= NEUTRAL)), VALIDATION, OBJECTIVES["classification"]
    )
    splits = {"train": train, "validation": validation}
    if split not in splits:
        raise RankwiseError(f"movies has no split {split!r}.{nearest(split, splits)}")
    return splits[split], ()
