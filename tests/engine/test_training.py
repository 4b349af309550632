"""The loop: learns, is the same for the same seed, and continues from a checkpoint bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from rankwise.config import TrainOptions
from rankwise.engine import checkpoint
from rankwise.engine.compute import Compute, predict_logits
from rankwise.engine.training import Training
from rankwise.errors import RankwiseError
from rankwise.lora.inject import adapt
from rankwise.tasks.encoding import Rows, encode

OPTIONS = TrainOptions(
    epochs=2,
    batch_size=8,
    lr=0.01,
    optimizer="adamw",
    schedule="linear",
    warmup=0.1,
    weight_decay=0.01,
    clip=1.0,
)


def rows(n=60):
    reviews = tiny.reviews(n)
    labels = np.array([r["label"] == "positive" for r in reviews], dtype=np.int64)
    texts = Rows(text=[r["text"] for r in reviews], text_pair=None, labels=labels, idx=np.arange(n))
    return encode(texts, tiny.tokenizer(), 64, None)


def training(method="lora", padding="packed", seed=0, **changes):
    model = tiny.classifier("bert")
    if method == "lora":
        adapt(model, 4)
    compute = Compute(device=torch.device("cpu"), padding=padding, max_length=64, pad_id=0)
    return Training(model, rows(), options=replace(OPTIONS, **changes), compute=compute, seed=seed)


def run(state, until=None):
    steps = []
    with state.compute.running(state.model):
        while not state.done and (until is None or state.step_number < until):
            steps.append(state.step())
    return steps


def trained(state):
    return {n: p.detach().clone() for n, p in state.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("padding", ["packed", "longest"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resumed_training_equals_an_undisturbed_one_bit_for_bit(method, padding, tmp_path):
    whole = training(method, padding)
    losses = [step.loss for step in run(whole)]
    first = training(method, padding)
    begun = [step.loss for step in run(first, until=7)]
    checkpoint.save(first, tmp_path)
    second = training(method, padding)
    checkpoint.load(second, tmp_path)
    assert begun + [step.loss for step in run(second)] == losses
    expected = trained(whole)
    assert all(torch.equal(value, expected[name]) for name, value in trained(second).items())


def test_methods_with_the_same_seed_see_the_same_batches():
    lora, full = training("lora"), training("full")
    for _ in range(lora.steps):
        assert np.array_equal(lora.batch(), full.batch())
        lora.step_number += 1
        full.step_number += 1
    assert not np.array_equal(training(seed=1).batch(), training(seed=0).batch())


def test_every_row_is_seen_once_an_epoch():
    state = training()
    seen = []
    for _ in range(state.batches.steps_per_epoch):
        seen.extend(state.batch().tolist())
        state.step_number += 1
    assert sorted(seen) == list(range(60))


@pytest.mark.parametrize("padding", ["packed", "longest"])
def test_accumulation_gives_the_whole_batchs_gradient(padding):
    def gradients(accumulate):
        state = training("lora", padding, accumulate=accumulate)
        state.model.double()
        for module in state.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        with state.compute.running(state.model):
            state.backward(state.batch())
        return {n: p.grad for n, p in state.model.named_parameters() if p.grad is not None}

    whole, parts = gradients(1), gradients(3)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-7)


def test_packed_and_padded_predictions_agree_and_keep_the_rows_order():
    state = training()
    logits = {
        padding: predict_logits(
            state.model, state.rows, replace(state.compute, padding=padding), max_tokens=100
        )
        for padding in ("packed", "longest", "max_length")
    }
    alone = [
        predict_logits(state.model, state.rows.select(np.array([i])), state.compute)[0] for i in (0, 31, 59)
    ]
    np.testing.assert_allclose(logits["packed"], logits["longest"], atol=1e-5)
    np.testing.assert_allclose(logits["max_length"], logits["longest"], atol=1e-5)
    np.testing.assert_allclose(logits["packed"][[0, 31, 59]], alone, atol=1e-5)


def test_a_loss_that_is_not_a_number_stops_with_the_step():
    state = training()
    run(state, until=2)
    with torch.no_grad():
        state.model.classifier.weight.fill_(float("nan"))
    with pytest.raises(RankwiseError, match="The loss is nan at step 3 of 16"):
        run(state)


@pytest.mark.slow
def test_training_learns_what_can_be_learned():
    state = training(epochs=25)
    run(state)
    accuracy = (predict_logits(state.model, state.rows, state.compute).argmax(1) == state.rows.labels).mean()
    assert accuracy >= 0.9
