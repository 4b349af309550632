"""Too little to decide anything: how many rows are held out for decisions, and what becomes of the ranks where that is none."""

import math
from collections.abc import Sequence

from rankwise.lora.low_rank import LowRankLayer
from rankwise.lora.scaling import START_RANK
from rankwise.rank.config import RankConfig

ROWS_PER_HELD_OUT_ROW = 96
"""Rows trained on, over all epochs, for one that is held out: evaluating held-out rows then takes a few percent of the time."""
LEAST_HELD_OUT, MOST_HELD_OUT = 200, 1024


def held_out_rows(rows: int, trained: int, steps: int, config: RankConfig) -> int:
    """Return how many rows to hold out for decisions; 0 where there is too little to decide anything.

    Args:
        rows: of the training data.
        trained: rows over all steps.
        steps: of the optimizer.
        config: the least rows and steps, and the largest share.
    """
    if rows < config.fewest_rows or steps < config.fewest_steps:
        return 0
    return min(
        max(LEAST_HELD_OUT, trained // ROWS_PER_HELD_OUT_ROW),
        int(rows * config.held_out_share),
        MOST_HELD_OUT,
    )


def keep_safe_rank(layers: Sequence[LowRankLayer], config: RankConfig) -> None:
    """Give fresh layers the safe rank for the whole training, in place; layers that have learned something keep what they have.

    Where the safe rank is 8, s is 2, as usual. A layer that starts lower is scaled by its root (rank-stabilised, Kalajdzievski 2023).
    """
    for layer in layers:
        layer.collect_statistics(False)
        if layer.lora_B.any():
            continue
        rank = min(config.safe_rank, layer.rank)
        alpha = layer.scaling * layer.rank
        layer.resize(layer.lora_A.detach()[:rank].clone(), layer.lora_B.detach()[:, :rank].clone())
        layer.scaling = alpha / math.sqrt(START_RANK * rank)
