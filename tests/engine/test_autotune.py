"""A memory limit is kept over a whole run, and what was measured is kept for the next."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from float64 import rows_of
from rankwise.config import TrainOptions
from rankwise.engine import checkpoint
from rankwise.engine.autotune import fastest, fixed_bytes, tune
from rankwise.engine.compute import Compute
from rankwise.engine.execution import Engine
from rankwise.engine.measure import MB
from rankwise.engine.training import Training
from rankwise.errors import RankwiseError
from rankwise.lora.inject import adapt, adapt_at_start_rank

OPTIONS = TrainOptions(
    epochs=1, batch_size=30, lr=0.01, optimizer="adamw", schedule="linear", warmup=0.0, weight_decay=0.0, clip=1.0
)  # fmt: skip


def rows(n):
    return rows_of(np.minimum(2 + np.random.default_rng(0).geometric(0.12, n), 60).tolist())


def peak(state):
    """Bytes at the peak of a whole run."""
    with state.memory() as memory, state.compute.running(state.model):
        while not state.done:
            state.step()
    return memory.peak_mb * MB


def wide(padding="packed"):
    """Activations that outweigh the weights, so that a limit has something to bite on."""
    model = tiny.classifier("bert")
    adapt(model, 4)
    compute = Compute(device=torch.device("cpu"), padding=padding, max_length=64, pad_id=0, threads=1)
    return Training(model, rows(60), options=OPTIONS, compute=compute, seed=0)


@pytest.mark.parametrize(
    ("padding", "share"),
    [("packed", 0.8), ("packed", 0.5), ("packed", 0.3), ("longest", 0.5), ("max_length", 0.3)],
)
def test_a_memory_limit_is_kept_over_the_whole_run(padding, share):
    unlimited = wide(padding)
    fast, fixed = peak(unlimited), fixed_bytes(unlimited)
    limit = int(fixed + share * (fast - fixed))
    state = wide(padding)
    said = tune(state, memory=f"{limit / 1e6:.6f}MB")
    assert peak(state) <= limit
    assert "to stay below" in said


def finding_ranks():
    """A training that may change its ranks, of a model that is small beside what full ranks would take."""
    model = tiny.classifier("bert")
    adapt_at_start_rank(model, 4)
    compute = Compute(device=torch.device("cpu"), max_length=64, pad_id=0, threads=1)
    return Training(model, rows(600), options=replace(OPTIONS, epochs=3), compute=compute, seed=0)


def test_growing_ranks_take_their_bytes_from_the_budget(tmp_path):
    state = finding_ranks()
    fixed = fixed_bytes(state)
    tune(state, memory="2MB")
    tuned = state.compute
    most = {path: min(32, x.in_features, x.out_features) for path, x in state.rank.layers.items()}
    with state.compute.running(state.model):
        state.step()
        changes = {path: (rank, most[path]) for path, rank in state.rank.ranks.items() if rank != most[path]}
        state.rank.resizer.resize(changes, state.rank.bases(), 1)
        checkpoint.save(state, tmp_path)
        state.step()
    grown = fixed_bytes(state) - fixed
    assert grown > 0.2e6
    assert state.compute.engine == replace(tuned.engine, budget=tuned.engine.budget - grown)

    resumed = finding_ranks()
    resumed.compute = tuned
    checkpoint.load(resumed, tmp_path)
    with resumed.compute.running(resumed.model):
        resumed.step()
    assert resumed.compute.engine == state.compute.engine
    for (_, a), (_, b) in zip(state.trained_parameters(), resumed.trained_parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_limit_too_small_for_one_row_says_what_it_takes():
    state = wide()
    with pytest.raises(
        RankwiseError, match=r"memory=0MB is too little: a text of \d+ tokens alone takes \d+ MB"
    ):
        tune(state, memory="1KB")


def test_lean_takes_less_memory_than_fast():
    fast, lean = wide(), wide()
    tune(fast, memory="fast")
    tune(lean, memory="lean")
    assert lean.compute.engine.recompute
    assert peak(lean) < peak(fast)


def test_the_number_of_micro_batches_is_measured_once(tmp_path):
    tried = []

    def step(engine, which):
        tried.append(engine.micro_batches)

    engine = fastest(step, np.arange(8), 2, tmp_path, "this machine")
    assert set(tried) == {1, 2}
    tried.clear()
    assert fastest(step, np.arange(8), 2, tmp_path, "this machine") == engine
    assert tried == []
    fastest(step, np.arange(8), 2, tmp_path, "another model")
    assert tried
    assert fastest(step, np.arange(8), 1, tmp_path, "one thread") == Engine()
