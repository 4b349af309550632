"""Processes share a batch, and what they compute adds up to what one computes alone. Spawned ones: tests/runs/test_processes.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rankwise.engine.compute import predict_logits
from rankwise.engine.processes import Processes, digest
from short_training import encoded, fixed


def gradients(padding, number, count, batch, **settings):
    """The loss and the gradients that a process of `count` finds on its share of a batch, and the rows of that share."""
    state = fixed(padding=padding, rows=encoded(60), **settings)
    for module in state.model.modules():
        if isinstance(module, torch.nn.Dropout) and padding != "packed":
            module.p = 0.0
    compute = replace(state.compute, processes=Processes(number, count))
    batches = compute.batches(state.model, state.rows, batch, key=(0, 0), micro_batches=2)
    state.compute, rows = compute, [row for one in batches for row in one.rows.tolist()]
    state.compute.processes.add_up = lambda holders, loss: loss  # each by itself
    with state.compute.running(state.model.train()):
        loss = state.backward(batch)
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in state.update.parameters]
    return loss, found, rows


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("padding", ["packed", "longest", "max_length"])
@pytest.mark.parametrize(("count", "rows"), [(2, 16), (3, 16), (4, 2)])
def test_the_shares_of_a_batch_add_up_to_it(padding, method, count, rows):
    batch = np.random.default_rng(0).permutation(60)[:rows]
    loss, whole, all_rows = gradients(padding, 0, 1, batch, method=method)
    parts = [gradients(padding, number, count, batch, method=method) for number in range(count)]
    assert sorted(row for part in parts for row in part[2]) == sorted(all_rows) == sorted(batch)
    assert sum(part[0] for part in parts) == pytest.approx(loss, rel=1e-6)
    for expected, *shares in zip(whole, *(part[1] for part in parts), strict=True):
        torch.testing.assert_close(sum(shares), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("padding", ["packed", "longest"])
def test_shares_have_about_equal_tokens(padding):
    state = fixed(padding=padding, rows=encoded(200))
    batch = np.arange(64)
    tokens = []
    for number in range(4):
        compute = replace(state.compute, processes=Processes(number, 4))
        batches = compute.batches(state.model, state.rows, batch)
        tokens.append(sum(int(state.rows.lengths[one.rows].sum()) for one in batches))
    assert max(tokens) - min(tokens) <= 2 * state.rows.lengths.max()


def test_logits_of_several_processes_add_up_to_those_of_one_bit_for_bit(monkeypatch):
    state = fixed(rows=encoded(200))
    whole = predict_logits(state.model, state.rows, state.compute, max_tokens=300)
    kept = []
    monkeypatch.setattr(Processes, "add_arrays", lambda self, array: kept.append(array) or array)
    for number in range(3):
        compute = replace(state.compute, processes=Processes(number, 3))
        predict_logits(state.model, state.rows, compute, max_tokens=300)
    assert np.array_equal(sum(kept), whole)
    assert all((part == 0).any() for part in kept)


def test_a_digest_tells_one_bit_and_a_shape():
    tensors = [torch.arange(6.0).view(2, 3), torch.zeros(0, 4), torch.ones(2, dtype=torch.bfloat16)]
    assert digest(tensors) == digest([t.clone() for t in tensors])
    other = tensors[0].clone()
    other.view(torch.int32)[0, 1] ^= 1
    assert (
        len({digest(tensors), digest([other, *tensors[1:]]), digest([tensors[0].view(3, 2), *tensors[1:]])})
        == 3
    )
    assert digest(tensors, "step 1") != digest(tensors, "step 2")
