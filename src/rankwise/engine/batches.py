"""Which rows make a batch, from their lengths alone: in random order for training, by length where nothing is trained."""

import numpy as np
from jaxtyping import Int64


def batch_order(
    lengths: Int64[np.ndarray, "rows"], batch_size: int, *, seed: int, group_by_length: bool = False
) -> list[Int64[np.ndarray, "batch"]]:
    """Return the batches of one epoch: every row once, in random order.

    Args:
        lengths: tokens of each row.
        batch_size: rows a batch; the last may have fewer.
        seed: of this epoch's order.
        group_by_length: put rows of similar length into a batch, as padded training wants. Blocks of 50 batches are sorted by
            length, as Transformers' Trainer does, and the batches are shuffled.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    if group_by_length:
        size = 50 * batch_size
        blocks = [order[i : i + size] for i in range(0, len(order), size)]
        order = np.concatenate([b[np.argsort(-lengths[b], kind="stable")] for b in blocks] or [order])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))] if group_by_length else batches


def token_batches(
    lengths: Int64[np.ndarray, "rows"], max_tokens: int, rows: int | None = None
) -> list[Int64[np.ndarray, "batch"]]:
    """Return every row once, sorted by length, in batches of at most `max_tokens` tokens or a single row, for evaluation.

    Padding counts, so that packed and padded batches take the same memory. Where `rows` is given, batches have so many rows instead.
    """
    order = np.argsort(lengths, kind="stable")
    if rows is not None:
        return [order[first : first + rows] for first in range(0, len(order), rows)]
    ascending = lengths[order]
    batches, first = [], 0
    while first < len(order):
        filled = ascending[first:] * np.arange(1, len(order) - first + 1)
        rows = max(int(np.searchsorted(filled, max_tokens, side="right")), 1)
        batches.append(order[first : first + rows])
        first += rows
    return batches


def equal_sections(lengths: Int64[np.ndarray, "rows"], count: int) -> list[int]:
    """Return where to cut rows, in their order, into `count` sections with about equal tokens: the first row of each, and the end.

    There are fewer sections where there are fewer rows.
    """
    ends = np.cumsum(lengths)
    wanted = ends[-1] * np.arange(1, count) / count
    nearest = np.abs(ends[:, None] - wanted).argmin(axis=0) + 1
    return np.unique(np.concatenate([[0], nearest, [len(lengths)]])).tolist()
