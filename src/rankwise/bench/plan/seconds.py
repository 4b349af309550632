"""The time an epoch takes on this machine, from a few steps of shallow models."""

import statistics
from dataclasses import replace

import numpy as np

from rankwise.bench.plan.setup import Setting, build_training, draw_rows, with_layers
from rankwise.engine.batch_schedule import GivenBatches
from rankwise.engine.batches import batch_order
from rankwise.engine.execution import Engine


def epoch_seconds(setting: Setting, lengths: np.ndarray, batch_size: int, recompute: bool) -> float:
    """Return the seconds of an epoch on this machine, without evaluation.

    Steps of the same model with 1 and 3 layers and random values are timed. The time is extrapolated linearly to all layers.

    Args:
        setting: what is trained.
        lengths: tokens of every row.
        batch_size: rows per step.
        recompute: with gradient checkpointing.
    """
    batches = batch_order(lengths, batch_size, seed=0)
    order = sorted(batches, key=lambda b: abs(lengths[b].sum() - lengths.mean() * batch_size))
    typical = lengths[order[0]]
    layers = int(setting.architecture.num_hidden_layers)
    few = tuple(dict.fromkeys(min(n, layers) for n in (1, 3)))
    seconds = [_step_seconds(setting, typical, n, recompute) for n in few]
    per_layer = (seconds[-1] - seconds[0]) / max(1, few[-1] - few[0])
    step = seconds[-1] + per_layer * (layers - few[-1])
    return step * float(lengths.sum()) / float(typical.sum())


def _step_seconds(setting: Setting, lengths: np.ndarray, layers: int, recompute: bool) -> float:
    """Return the median time of a few steps after two of warm-up, on all cores."""
    training = build_training(replace(setting, architecture=with_layers(setting.architecture, layers)))
    training.compute = replace(training.compute, engine=Engine(recompute=recompute), threads=None)
    training.rows = draw_rows(setting, lengths)
    training.batches, taken = GivenBatches([np.arange(len(lengths))], 10**6), []
    with training.compute.running(training.model):
        while len(taken) < 5:
            taken.append(training.step().seconds)
    return statistics.median(taken[2:])
