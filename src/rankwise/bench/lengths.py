"""Lengths of a task's rows, as histograms in the package, and rows of random token ids of given lengths.

    lengths.json   tasks: task → {tokens: rows}                                   made by `benchmarks/lengths.py`
                   labels: task → {tokens: labelled tokens of all these rows}     of language models' tasks

Speed and memory depend on the lengths of rows, not on their words. So a measurement needs no data set.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from rankwise.engine.pooling import END_POOLED
from rankwise.errors import RankwiseError, nearest
from rankwise.tasks.encoding import Encoded
from rankwise.tasks.labels import IGNORED
from rankwise.tasks.registry import TASKS


@cache
def _histograms(kind: str = "tasks") -> dict[str, dict[int, int]]:
    tasks = json.loads(files("rankwise.bench").joinpath("lengths.json").read_text())[kind]
    return {name: {int(tokens): rows for tokens, rows in counts.items()} for name, counts in tasks.items()}


def histogram(name: str) -> dict[int, int]:
    """Return {tokens: rows} of a task's training split, special tokens included, or `{n: 1}` for a number n.

    Raises:
        RankwiseError: `name` is neither a task nor a positive number.
    """
    if name in TASKS and (lengths := TASKS[name].lengths) is not None:
        return dict(lengths)
    if name in _histograms():
        return _histograms()[name]
    if name.isdecimal() and len(name) < 10 and int(name) > 0:
        return {int(name): 1}
    raise RankwiseError(
        f"Lengths are a task's name or a number of tokens, not {name!r}.{nearest(name, _histograms())}"
    )


def draw(name: str, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the lengths of `rows` rows independently from a histogram (int64 [rows])."""
    counts = histogram(name)
    share = np.array(list(counts.values())) / sum(counts.values())
    return rng.choice(np.array(list(counts)), size=rows, p=share)


def epoch(name: str, rng: np.random.Generator) -> np.ndarray:
    """Return the length of every row of a task's training split, shuffled (int64 [rows of the task])."""
    counts = histogram(name)
    return rng.permutation(np.repeat(np.array(list(counts)), list(counts.values())))


def labelled(name: str, lengths: np.ndarray) -> np.ndarray:
    """Return how many tokens of rows of these lengths a language model learns (int64 [rows]).

    It is the mean of the task's rows of that length, rounded up. Where that isn't stored, it is every token but a row's first.

    Args:
        name: a task, or anything else.
        lengths: tokens of each row.
    """
    whole = np.maximum(lengths - 1, 0)
    if name not in _histograms("labels"):
        return whole
    rows, labels = _histograms()[name], _histograms("labels")[name]
    share = sum(labels.values()) / sum(n * count for n, count in rows.items())
    mean = {n: labels[n] / rows[n] for n in rows}
    found = np.array([mean.get(n, n * share) for n in lengths.tolist()])
    return np.minimum(np.ceil(found).astype(np.int64), whole)


def length_grouped(lengths: np.ndarray, batch_size: int, seed: int) -> list[np.ndarray]:
    """Return batches of rows of similar length, as Trainer makes them from a large data set.

    Trainer sorts within groups of 50 batches, and within fewer when the data set is small. A repeat is small only because
    it is a piece of a measurement, so it is sorted like a large data set.

    Args:
        lengths: tokens of each row.
        batch_size: rows per batch; the last may have fewer.
        seed: of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    order = get_length_grouped_indices(lengths.tolist(), batch_size, 50, generator)
    return [np.array(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]


def random_rows(
    lengths: np.ndarray, model_config: Any, rng: np.random.Generator, labels: np.ndarray | None = None
) -> Encoded:
    """Draw rows of random token ids with random labels. The padding token never occurs, because it moves RoBERTa's positions.

    Where a model pools at the end-of-text token, each row has one, its last.

    Args:
        lengths: tokens of each row.
        model_config: a Transformers config with the vocabulary size, the padding token and the number of classes.
        rng: source of the random numbers.
        labels: how many tokens of each row a language model learns, the last ones. None: rows have classes.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(0, model_config.vocab_size - 1, size=offsets[-1], dtype=np.int32)
    ids += ids >= model_config.pad_token_id
    if model_config.model_type in END_POOLED:
        end = model_config.eos_token_id
        ids[ids == end] = min({0, 1, 2} - {end, model_config.pad_token_id})
        ids[offsets[1:] - 1] = end
    classes = rng.integers(0, model_config.num_labels, size=len(lengths)) if labels is None else None
    return Encoded(
        input_ids=ids,
        offsets=offsets,
        token_type_ids=None,
        labels=np.zeros(len(lengths), dtype=np.float32) if classes is None else classes,
        idx=np.arange(len(lengths)),
        n_truncated=0,
        token_labels=None if labels is None else _next_tokens(ids, offsets, labels),
    )


def _next_tokens(ids: np.ndarray, offsets: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return for each token the next one of its row, where that is one of the row's last `labels` tokens."""
    lengths = np.diff(offsets)
    to_go = np.repeat(offsets[1:], lengths) - np.arange(len(ids)) - 1
    learned = (to_go > 0) & (to_go <= np.repeat(labels, lengths))
    return np.where(learned, np.roll(ids, -1), IGNORED).astype(np.int64)
