"""What one run trains and evaluates on, and splits that are the same for every run.

A row's side is decided by a hash of its text. So a split depends on no seed and on no library's version, and texts that differ only in case
or punctuation stay on the same side, whatever their labels.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int64

from rankwise.tasks.encoding import Rows
from rankwise.tasks.objectives import Objective
from rankwise.tasks.task import Task


@dataclass(frozen=True)
class Dataset:
    """What one run trains and evaluates on.

    Attributes:
        task: with its label names filled in.
        train: training rows, in the order that every method shares.
        validation: `validation` first, the headline (mnli's matched); mnli may add `validation_mismatched`.
        notes: sentences for the log: which rows were left out or are in both parts, and what differs from the published data.
        left_out: why rows are in neither part → their number.
    """

    task: Task
    train: Rows
    validation: dict[str, Rows]
    notes: tuple[str, ...] = field(default=())
    left_out: Mapping[str, int] = field(default_factory=dict)


def stratified_split(rows: Rows, share: float, objective: Objective) -> tuple[Rows, Rows]:
    """Return a fixed split into training and validation rows, with the same share of each of the objective's strata.

    Args:
        rows: labelled.
        share: of each stratum that goes to validation; a stratum of two texts or more gives at least one.
        objective: says what the strata are: the classes, or all rows as one.
    """
    keys, strata = _hashes(rows, objective)
    held_out = np.zeros(len(rows), dtype=bool)
    for stratum in np.unique(strata):
        ordered = np.sort(keys[strata == stratum])
        if len(ordered) > 1:
            bound = ordered[max(1, round(share * len(ordered)))]
            held_out |= (strata == stratum) & (keys < bound)
    return rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))


def fold_split(rows: Rows, folds: int, fold: int, objective: Objective) -> tuple[Rows, Rows]:
    """Return the rows to train and to validate on for one fold of a cross-validation, stratified as in `stratified_split`.

    Args:
        rows: labelled.
        folds: number of parts; each row is validated on in one of them.
        fold: the part, from 0.
        objective: says what the strata are.
    """
    keys, strata = _hashes(rows, objective)
    part, first = np.zeros(len(rows), dtype=np.int64), 0
    for stratum in np.unique(strata):
        inside = strata == stratum
        texts, place = np.unique(keys[inside], return_inverse=True)
        part[inside] = (first + place) % folds  # a small stratum begins where the last one ended
        first += len(texts)
    return rows.select(np.flatnonzero(part != fold)), rows.select(np.flatnonzero(part == fold))


def joined(first: Rows, second: Rows) -> Rows:
    """Return the rows of two splits as one."""
    pairs = first.text_pair is not None and second.text_pair is not None
    labels = (
        None
        if first.labels is None or second.labels is None
        else np.concatenate([first.labels, second.labels])
    )
    return Rows(
        text=first.text + second.text,
        text_pair=[*(first.text_pair or ()), *(second.text_pair or ())] if pairs else None,
        labels=labels,
        idx=np.concatenate([first.idx, second.idx]),
    )


def _hashes(rows: Rows, objective: Objective) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of each row's text, and its stratum."""
    assert rows.labels is not None
    keys = np.array([hashlib.sha256(key.encode()).digest()[:16] for key in _loose_keys(rows)], dtype="S16")
    return keys, _one_stratum_a_text(keys, objective.strata(rows.labels))


def _one_stratum_a_text(keys: np.ndarray, strata: Int64[np.ndarray, "rows"]) -> Int64[np.ndarray, "rows"]:
    """Return the stratum of each row, where rows of one text that stand in several are all in the smallest of those."""
    _, by_size = np.unique(strata, return_inverse=True)
    sizes = np.bincount(by_size)
    rank = np.argsort(np.argsort(sizes, kind="stable"), kind="stable")[by_size]
    _, text = np.unique(keys, return_inverse=True)
    least = np.full(len(keys), len(sizes))
    np.minimum.at(least, text, rank)
    return least[text]


def two_labels(rows: Rows) -> int:
    """Return the number of rows whose text (or pair) stands in the same rows with another label too."""
    assert rows.labels is not None
    labels: dict[tuple[Any, ...], set[Any]] = {}
    keys = _keys(rows)
    for key, label in zip(keys, rows.labels.tolist(), strict=True):
        labels.setdefault(key, set()).add(str(label))
    return sum(len(labels[key]) > 1 for key in keys)


def same_row(train: Rows, validation: Rows) -> int:
    """Return the number of validation rows whose text (or pair) is also in training, whatever the labels."""
    known = set(_keys(train))
    return sum(key in known for key in _keys(validation))


def repeated(rows: Rows) -> int:
    """Return the number of rows whose text (or pair) stands in an earlier row, whatever the labels."""
    return len(rows) - len(set(_keys(rows)))


def _keys(rows: Rows) -> list[tuple[Any, ...]]:
    """Return what makes two rows the same row: the text or the pair, without surrounding white space.

    Of a language model's rows it is the prompt: another completion of it is no new example.
    """
    columns = (
        [rows.text] if rows.text_pair is None or rows.learned is not None else [rows.text, rows.text_pair]
    )
    return [tuple(text.strip() for text in row) for row in zip(*columns, strict=True)]


def _loose_keys(rows: Rows) -> list[str]:
    """Return the same without case and punctuation, unless a text has nothing else."""
    return [
        "\t".join(re.sub(r"\W+", " ", text.casefold()).strip() or text for text in row) for row in _keys(rows)
    ]
