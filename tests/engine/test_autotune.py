"""However a batch is cut and run, its gradients are the same; and a memory limit is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from rankwise.config import TrainOptions, parse_memory
from rankwise.engine import checkpoint
from rankwise.engine.autotune import fastest, fixed_bytes, tune
from rankwise.engine.compute import Compute
from rankwise.engine.execution import MARGIN, Cost, Engine
from rankwise.engine.measure import MB, TensorMemory
from rankwise.engine.training import Training
from rankwise.errors import RankwiseError
from rankwise.lora.inject import adapt, adapt_freely
from rankwise.lora.layer import lora_layers
from rankwise.tasks.encoding import Encoded

OPTIONS = TrainOptions(
    epochs=1, batch_size=12, lr=0.01, optimizer="adamw", schedule="linear", warmup=0.0, weight_decay=0.0, clip=1.0
)  # fmt: skip
FAMILIES = ["bert", "roberta", "distilbert", "gpt2", "llama", "modernbert"]


def rows(n=36, longest=40):
    rng = np.random.default_rng(0)
    lengths = np.minimum(2 + rng.geometric(0.12, n), longest)
    return Encoded(
        input_ids=rng.integers(4, 100, lengths.sum()).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        token_type_ids=None,
        labels=rng.integers(0, 2, n),
        idx=np.arange(n),
        n_truncated=0,
    )


def training(family="bert", padding="packed", engine=None, dtype=torch.float64):
    model = tiny.classifier(family)
    model.config.pad_token_id = 0
    adapt(model.to(dtype), 4)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B)
    compute = Compute(
        device=torch.device("cpu"),
        padding=padding,
        max_length=48,
        pad_id=0,
        engine=engine or Engine(),
        threads=1,
    )
    return Training(model, rows(), options=OPTIONS, compute=compute, seed=0)


def gradients(state):
    with state.compute.running(state.model.train()):
        loss = state.backward(state.batch())
    return loss, [p.grad.clone() for p in state.update.parameters]


def assert_same(ours, theirs):
    assert ours[0] == pytest.approx(theirs[0], rel=1e-10)
    whole = torch.stack([g.norm() for g in theirs[1]]).norm()
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert (a - b).norm() <= 1e-10 * max(b.norm(), 1e-3 * whole)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "engine",
    [Engine(micro_batches=2), Engine(recompute=True), Engine(micro_batches=3, recompute=True)],
    ids=str,
)
def test_parts_side_by_side_and_recomputed_layers_give_the_same_gradients_with_dropout_on(family, engine):
    assert_same(gradients(training(family, engine=engine)), gradients(training(family)))


def limited(budget):
    return Engine(cost=Cost(base=0.0, token=1.0, score=0.0, seconds=0.0, token_seconds=0.0), budget=budget)


@pytest.mark.parametrize("budget", [1.0, 40.0, 90.0])
def test_a_batch_cut_to_a_limit_gives_the_same_gradients(budget):
    state = training(engine=limited(budget))
    parts = state.compute.batches(state.model, state.rows, state.batch(), key=(0, 0))
    assert all(len(part) == 1 or MARGIN * part.layout.padded.sum() <= budget for part in parts)
    assert len(parts) > 1
    assert sorted(np.concatenate([part.rows for part in parts])) == sorted(state.batch())
    assert_same(gradients(state), gradients(training()))


@pytest.mark.parametrize("engine", [limited(100.0), Engine(recompute=True)], ids=["cut", "recomputed"])
def test_padded_batches_are_cut_and_recomputed_alike(engine):
    ours, theirs = training(padding="longest", engine=engine), training(padding="longest")
    for state in (ours, theirs):
        for module in state.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # torch's own dropout follows the order of its calls
    assert_same(gradients(ours), gradients(theirs))


def test_padded_dropout_is_the_same_when_layers_run_again():
    torch.manual_seed(0)
    plain = gradients(training(padding="longest"))
    torch.manual_seed(0)
    assert_same(gradients(training(padding="longest", engine=Engine(recompute=True))), plain)


def peak(state):
    with TensorMemory() as memory, state.compute.running(state.model):
        while not state.done:
            state.step()
    return memory.peak_mb * MB


def wide(padding="packed"):
    """Activations that outweigh the weights, so that a limit has something to bite on."""
    model = tiny.classifier("bert")
    adapt(model, 4)
    long = rows(60, 60)
    compute = Compute(device=torch.device("cpu"), padding=padding, max_length=64, pad_id=0, threads=1)
    return Training(model, long, options=replace(OPTIONS, batch_size=30), compute=compute, seed=0)


@pytest.mark.parametrize("padding", ["packed", "longest", "max_length"])
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_a_memory_limit_is_kept_over_the_whole_run(padding, share):
    unlimited = wide(padding)
    with TensorMemory() as empty:
        pass
    fast = peak(unlimited) - empty.peak_mb * MB
    fixed = fixed_bytes(unlimited)
    del unlimited
    limit = int(fixed + share * (fast - fixed))
    state = wide(padding)
    said = tune(state, memory=f"{limit / 1e6:.6f}MB")
    with TensorMemory() as level:
        pass
    beside = level.peak_mb * MB - fixed_bytes(
        state
    )  # what other tests left, and moments that aren't there yet
    assert peak(state) - max(0.0, beside) <= limit
    assert "to stay below" in said


def finding_ranks():
    """A training that may change its ranks, of a model that is small beside what full ranks would take."""
    model = tiny.classifier("bert")
    adapt_freely(model, 4)
    compute = Compute(device=torch.device("cpu"), max_length=64, pad_id=0, threads=1)
    return Training(
        model, rows(600, 60), options=replace(OPTIONS, batch_size=30, epochs=3), compute=compute, seed=0
    )


def test_what_layers_take_when_they_grow_is_taken_from_the_rows_of_a_part(tmp_path):
    state = finding_ranks()
    fixed = fixed_bytes(state)
    tune(state, memory="2MB")
    tuned = state.compute
    most = {path: min(32, x.in_features, x.out_features) for path, x in state.rank.layers.items()}
    with state.compute.running(state.model):
        state.step()
        state.rank._resize(state.rank._changes(most))
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


def test_recomputing_is_off_again_outside_of_training():
    state = training(engine=Engine(recompute=True))
    gradients(state)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in state.model.modules())


@pytest.mark.parametrize(
    ("text", "found"),
    [("fast", "fast"), ("LEAN", "lean"), ("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("7kb", 7000)],
)  # fmt: skip
def test_memory_is_a_word_or_a_size(text, found):
    assert parse_memory(text) == found


@pytest.mark.parametrize("text", ["", "2", "GB", "two GB", "-1GB", "0MB", "nanGB", "infGB", "2 G B", "2PB"])
def test_what_is_no_size_is_refused_with_what_would_be(text):
    with pytest.raises(RankwiseError, match="--memory takes fast, lean, or a size such as 2GB"):
        parse_memory(text)


def test_an_engine_survives_being_stored():
    cost = Cost(1.0, 2.0, 3.0, 4.0, 5.0)
    for engine in (Engine(), Engine(2, True), Engine(1, False, cost, 1234.5)):
        assert Engine.from_json(engine.to_json()) == engine


def test_the_line_through_probes_is_found():
    truth = Cost(1000.0, 50.0, 2.0, 0.5, 0.25)
    batches = [np.array([9]), np.array([9, 7, 8]), np.array([2, 3, 2, 2, 4])]
    probes = [
        (n, truth.base + truth.token * n.sum() + truth.score * (n**2).sum(), 0.5 + 0.25 * n.sum())
        for n in batches
    ]
    found = Cost.fit(probes)
    for name in ("base", "token", "score", "seconds", "token_seconds"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-6)


def test_what_was_measured_once_is_not_measured_again(tmp_path):
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
