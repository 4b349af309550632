"""Which steps are profiled, and that profiling one changes nothing."""

import numpy as np
import pytest

from float64 import rows_of
from rankwise.engine.execution import Engine
from rankwise.engine.measure import KINDS, MB
from rankwise.engine.profiling import profiled_steps
from short_training import fixed

ROWS = rows_of(np.random.default_rng(0).integers(3, 30, 24).tolist())


def test_the_heaviest_batch_is_among_the_profiled_steps():
    training = fixed(rows=ROWS, epochs=3)
    profiled, tokens = profiled_steps(training.batches, training.rows, training.compute), []
    while not training.done:
        tokens.append(int(training.rows.lengths[training.batch()].sum()))
        training.step_number += 1
    assert max(tokens[1:]) in [tokens[i] for i in profiled]
    assert all(0 <= i < training.steps for i in profiled)


@pytest.mark.parametrize(
    "engine", [Engine(), Engine(recompute=True), Engine(micro_batches=2)], ids=["one", "recomputed", "two"]
)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_profiled_step_gives_the_same_numbers(method, engine):
    def numbers(profile):
        training = fixed(method, ROWS, engine=engine)
        with training.compute.running(training.model):
            steps = [training.step(profile=profile) for _ in range(2)]
        return [(s.loss, s.grad_norm) for s in steps], steps, training

    plain, _, _ = numbers(False)
    profiled, steps, training = numbers(True)
    assert profiled == plain
    assert training.speed.rows_per_second is None  # steps that were slowed down don't count
    for step in steps:
        assert round(step.memory["total"] * MB) == sum(round(step.memory[kind] * MB) for kind in KINDS)
        assert min(step.memory[kind] for kind in ("weights", "gradients", "optimizer", "batch")) >= 0
        assert step.flops > 0


def test_checkpointing_takes_activations_away_and_nothing_else():
    def peak(recompute):
        training = fixed(rows=ROWS, engine=Engine(recompute=recompute))
        with training.compute.running(training.model):
            training.step()
            return training.step(profile=True).memory

    fast, lean = peak(False), peak(True)
    assert lean["weights"] == fast["weights"]
    assert lean["optimizer"] == fast["optimizer"]
    assert 0 < lean["activations"] < 0.8 * fast["activations"]
