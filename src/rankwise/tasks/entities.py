"""Entities in the tags of words, counted row by row and kind by kind, as seqeval counts them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from rankwise.tasks.metrics import check_seqeval

RIGHT, PREDICTED, THERE = range(3)
"""Places of the counts: entities predicted with the right words and kind, predicted at all, and those that there are."""


def count(
    labels: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]
) -> tuple[list[str], Int64[np.ndarray, "rows kinds 3"]]:
    """Return the kinds of entities, sorted, and how many of each a row has.

    Args:
        labels: the tags of each row's words: `O`, or `B-`, `I-`, … and the kind of entity.
        predictions: of the same words.

    Raises:
        RankwiseError: seqeval is missing.
    """
    check_seqeval()
    from seqeval.metrics.sequence_labeling import get_entities  # pyright: ignore[reportMissingImports]  # an extra

    found = []
    for row, (there, said) in enumerate(zip(labels, predictions, strict=True)):
        sets = set(get_entities(list(there))), set(get_entities(list(said)))
        for place, some in ((RIGHT, sets[0] & sets[1]), (PREDICTED, sets[1]), (THERE, sets[0])):
            found += [(row, kind, place) for kind, _, _ in some]
    kinds = sorted({kind for _, kind, _ in found})
    counts = np.zeros((len(labels), len(kinds), 3), dtype=np.int64)
    for row, kind, place in found:
        counts[row, kinds.index(kind), place] += 1
    return kinds, counts


def scores(counts: Int64[np.ndarray, "3"]) -> dict[str, float]:
    """Return `entity_f1`, `entity_precision` and `entity_recall` from sums of counts; 0 where nothing is counted."""
    right, predicted, there = counts.tolist()
    return {
        "entity_f1": 2 * right / (predicted + there) if predicted + there else 0.0,
        "entity_precision": right / predicted if predicted else 0.0,
        "entity_recall": right / there if there else 0.0,
    }
