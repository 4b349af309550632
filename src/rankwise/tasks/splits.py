"""What one run trains and evaluates on, and splits that are the same for everybody.

A split is drawn by a hash of the text: no seed, nothing that changes with a library's version, and texts that differ only in case or
punctuation stay together.
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rankwise.tasks.encoding import Rows
from rankwise.tasks.problems import strata
from rankwise.tasks.task import Task


@dataclass(frozen=True)
class Dataset:
    """What one run trains and evaluates on.

    Attributes:
        task: with its label names filled in.
        train: training rows, in the order that every method shares.
        validation: `validation` first, the headline (mnli's matched); mnli may add `validation_mismatched`.
        notes: sentences for the log: what was left out, shared, or differs from the published data.
    """

    task: Task
    train: Rows
    validation: dict[str, Rows]
    notes: tuple[str, ...] = field(default=())


def stratified_split(rows: Rows, share: float) -> tuple[Rows, Rows]:
    """A fixed split into training and validation rows, the same share of each class (of all rows where labels aren't classes).

    Args:
        rows: labelled.
        share: of each class that goes to validation; a class of two texts or more gives at least one.
    """
    assert rows.labels is not None
    classes = strata(rows.labels)
    keys = np.array([hashlib.sha256(key.encode()).digest()[:16] for key in _loose_keys(rows)], dtype="S16")
    held_out = np.zeros(len(rows), dtype=bool)
    for label in np.unique(classes):
        ordered = np.sort(keys[classes == label])
        if len(ordered) > 1:
            bound = ordered[max(1, round(share * len(ordered)))]
            held_out |= (classes == label) & (keys < bound)
    return rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))


def same_row(train: Rows, validation: Rows) -> int:
    """Validation rows whose text (or pair) is one of the training rows', label or not."""
    known = set(_keys(train))
    return sum(key in known for key in _keys(validation))


def _keys(rows: Rows) -> list[tuple[Any, ...]]:
    """What makes two rows the same row: the text or the pair, without white space around it."""
    columns = [rows.text] if rows.text_pair is None else [rows.text, rows.text_pair]
    return [tuple(text.strip() for text in row) for row in zip(*columns, strict=True)]


def _loose_keys(rows: Rows) -> list[str]:
    """The same but for case and punctuation, unless nothing else is there."""
    return [
        "\t".join(re.sub(r"\W+", " ", text.casefold()).strip() or text for text in row) for row in _keys(rows)
    ]
