"""What deciding ranks adds to a training: rows held out of it, and tensors that collect statistics in backward."""

from typing import cast

import numpy as np
from jaxtyping import Int64
from torch import Tensor, nn

from rankwise.engine.batch_schedule import BatchSchedule
from rankwise.lora.layer import LoRALinear, lora_layers
from rankwise.rank import defaults
from rankwise.rank.controller import RankController
from rankwise.rank.too_little import held_out_rows, keep_safe_rank


def hold_out(
    model: nn.Module, batches: BatchSchedule, strata: Int64[np.ndarray, "rows"] | None = None
) -> str:
    """Hold out rows to decide ranks on, where a model's ranks are to be found and there is enough data.

    With too little data, layers keep a safe rank instead.

    Args:
        model: its LoRA layers collect statistics where their ranks are to be found.
        batches: of the training; the rows are held out of them.
        strata: group of each row, see `BatchSchedule.hold_out`.

    Returns:
        What was done, in a sentence; empty where no ranks are to be found.
    """
    layers = [x for x in lora_layers(model).values() if x.statistics is not None and x.is_trained]
    if not layers:
        return ""
    config = defaults.config_for(layers)
    n = held_out_rows(batches.rows, batches.steps * batches.batch_size, batches.steps, config)
    if n:
        batches.hold_out(n, strata)
        return (
            f"Ranks start at {_ranks(layers)}; {n:,} training rows decide them and are trained on afterwards."
        )
    keep_safe_rank(layers, config)
    little = f"{batches.rows:,} rows, {batches.steps} steps"
    return f"Too little to find ranks on ({little}): {_kept(layers)}."


def _kept(layers: list[LoRALinear]) -> str:
    ranks = _ranks(layers)
    return f"every layer keeps rank {ranks}" if ranks.isdecimal() else f"every layer keeps its rank, {ranks}"


def _ranks(layers: list[LoRALinear]) -> str:
    """Return `16`, or `2 to 16` where layers differ, as they may where a training goes on from an adapter."""
    low, high = min(layer.rank for layer in layers), max(layer.rank for layer in layers)
    return str(low) if low == high else f"{low} to {high}"


def collectors(rank: RankController | None) -> list[Tensor]:
    """Return the tensors whose gradients are the layers' statistics (`LoRALinear.statistics`)."""
    return [] if rank is None else [cast(Tensor, layer.statistics) for layer in rank.layers.values()]


def statistics(rank: RankController | None) -> list[Tensor]:
    """Return those tensors, their gradients, and the statistics summed up over steps."""
    found = [t for c in collectors(rank) for t in (c, c.grad) if t is not None]
    return found if rank is None else [*found, *rank.statistics.sums.values()]
