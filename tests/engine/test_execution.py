"""However a batch is divided and run, its gradients are the same."""

import numpy as np
import pytest
import torch

import tiny
from float64 import rows_of
from rankwise.config import TrainOptions
from rankwise.engine.compute import Compute
from rankwise.engine.execution import MARGIN, Cost, Engine
from rankwise.engine.training import Training
from rankwise.lora.inject import adapt
from rankwise.lora.layer import lora_layers

OPTIONS = TrainOptions(
    epochs=1, batch_size=12, lr=0.01, optimizer="adamw", schedule="linear", warmup=0.0, weight_decay=0.0, clip=1.0
)  # fmt: skip
ROWS = rows_of(np.minimum(2 + np.random.default_rng(0).geometric(0.12, 24), 40).tolist())
TWO, LEAN, BOTH = Engine(micro_batches=2), Engine(recompute=True), Engine(micro_batches=3, recompute=True)


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
    return Training(model, ROWS, options=OPTIONS, compute=compute, seed=0)


def gradients(state):
    with state.compute.running(state.model.train()):
        loss = state.backward(state.batch())
    return loss, [p.grad.clone() for p in state.update.parameters]


def assert_same(ours, theirs):
    assert ours[0] == pytest.approx(theirs[0], rel=1e-10)
    whole = torch.stack([g.norm() for g in theirs[1]]).norm()
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert (a - b).norm() <= 1e-10 * max(b.norm(), 1e-3 * whole)


@pytest.mark.parametrize(
    ("family", "engine"),
    [
        *((family, BOTH) for family in ["bert", "roberta", "distilbert", "gpt2", "llama", "modernbert"]),
        *((family, one) for family in ["bert", "llama"] for one in [TWO, LEAN]),
    ],
    ids=str,
)
def test_every_engine_gives_the_same_gradients_with_dropout(family, engine):
    assert_same(gradients(training(family, engine=engine)), gradients(training(family)))


def limited(budget):
    return Engine(cost=Cost(base=0.0, token=1.0, score=0.0, seconds=0.0, token_seconds=0.0), budget=budget)


@pytest.mark.parametrize("budget", [1.0, 40.0, 90.0])
def test_a_batch_divided_to_a_budget_gives_the_same_gradients(budget):
    state = training(engine=limited(budget))
    micro_batches = state.compute.batches(state.model, state.rows, state.batch(), key=(0, 0))
    assert all(len(one) == 1 or MARGIN * one.layout.padded.sum() <= budget for one in micro_batches)
    assert len(micro_batches) > 1
    assert sorted(np.concatenate([one.rows for one in micro_batches])) == sorted(state.batch())
    assert_same(gradients(state), gradients(training()))


@pytest.mark.parametrize("budget", [1.0, 60.0, 100.0, 130.0, 300.0])
def test_padded_micro_batches_stay_within_the_budget(budget):
    state = training(padding="longest", engine=limited(budget))
    micro_batches = state.compute.batches(state.model, state.rows, state.batch())
    tokens = [one.inputs["input_ids"].numel() for one in micro_batches]
    assert all(
        len(one.rows) == 1 or MARGIN * n <= budget for one, n in zip(micro_batches, tokens, strict=True)
    )
    assert sorted(np.concatenate([one.rows for one in micro_batches])) == sorted(state.batch())


@pytest.mark.parametrize("engine", [limited(100.0), Engine(recompute=True)], ids=["divided", "recomputed"])
def test_padded_batches_give_the_same_gradients_too(engine):
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


def test_bytes_that_come_in_are_taken_from_every_micro_batchs_budget():
    cost = Cost(1.0, 2.0, 3.0, 4.0, 5.0)
    assert Engine(2, False, cost, 100.0).with_extra_bytes(30.0) == Engine(2, False, cost, 85.0)
    assert Engine(2, False, cost, 100.0).with_extra_bytes(-30.0) == Engine(2, False, cost, 115.0)
    assert Engine(2).with_extra_bytes(30.0) == Engine(2)
