"""The weight of a batch: a number that its memory is almost linear in. And the shares that several processes have of it."""

from itertools import pairwise

import numpy as np

from rankwise.bench.plan.setup import Setting
from rankwise.engine.batches import equal_sections
from rankwise.engine.layout import length_groups
from rankwise.engine.packing import filling
from rankwise.models import families

KEPT = 17
"""Numbers that a layer keeps for backward, for each token and unit of width. Only the balance between long and many rows depends on it."""


def weight(batch: np.ndarray, setting: Setting) -> float:
    """Return the weight of a batch that one process computes, from the tokens of its rows.

    A layer keeps about `KEPT` numbers per token and unit of width, and one per head and pair of tokens of a row.
    """
    if setting.padding == "packed":
        tokens = int(batch.sum())
        padded, tokens = length_groups(np.sort(batch)), tokens + filling(tokens)
    else:
        padded = np.full_like(batch, batch.max())
        tokens = int(padded.sum())
    per_token, per_pair = costs(setting)
    return per_token * tokens + per_pair * float((padded.astype(float) ** 2).sum())


def costs(setting: Setting) -> tuple[int, int]:
    """Return the numbers kept per token and per pair of tokens of a row."""
    return KEPT * families.width(setting.architecture), setting.architecture.num_attention_heads


def shares(batch: np.ndarray, processes: int) -> list[np.ndarray]:
    """Return the processes' shares of a batch, as `Compute.batches` makes them: the tokens of each one's rows."""
    by_length = np.sort(batch)
    return [by_length[first:last] for first, last in pairwise(equal_sections(by_length, processes))]
