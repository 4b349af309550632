"""What reaches the statistics: numbers that are finite, on any gradient scale, without waiting for the device."""

import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rankwise.lora.inject import adapt_at_start_rank
from rankwise.lora.layer import lora_layers
from rankwise.rank.config import RankConfig
from rankwise.rank.controller import RankController

X, Y = (torch.randn(32, 16, generator=torch.Generator().manual_seed(i)) for i in (0, 1))


class Twice(nn.Module):
    """Two layers; the first is used twice in a forward, and a third isn't used."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.second(torch.tanh(self.first(torch.tanh(self.first(x)))))


def network():
    torch.manual_seed(0)
    model = adapt_at_start_rank(Twice(), 3, targets=("first", "second", "unused"))
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B)
    return model


class Loop:
    """Steps that don't change the weights, so that every step has the same statistics but for the scale of its rows."""

    def __init__(self, *, scaler=None, wrapped=False, fused=False, steps=1000):
        self.model, self.scaler = network(), scaler
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = (
            torch.optim.AdamW(parameters, lr=0.0, fused=True)
            if fused
            else torch.optim.SGD(parameters, lr=0.0)
        )
        if wrapped:
            Accelerator(cpu=True)
            self.optimizer = AcceleratedOptimizer(self.optimizer, scaler=scaler)
        self.wrapped = wrapped
        self.controller = RankController(
            self.model, lambda: torch.zeros(2), steps, self.optimizer, config=RankConfig(grow_at=())
        )

    def step(self, i, *, overflow=False, unscale=False, in_head=False):
        loss = (self.model((1 + i % 3) * X) - Y).square().mean()
        if overflow:
            loss = loss * math.inf
        self.optimizer.zero_grad()
        if self.scaler is None:
            loss.backward()
            self.optimizer.step()
        else:
            self.scaler.scale(loss).backward()
            if unscale:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), 1e-3)
            if in_head:  # an overflow that the layers' statistics don't have
                self.model.second.lora_A.grad[0, 0] = math.inf
            if self.wrapped:
                self.optimizer.step()
            else:
                self.scaler.step(self.optimizer)
                self.scaler.update()
        self.controller.step()


def scaler(**options):
    return torch.amp.GradScaler("cpu", **{"init_scale": 2.0**16, "growth_interval": 4, **options})


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"wrapped": True}], ids=str)
@pytest.mark.parametrize("unscale", [False, True])
def test_a_grad_scaler_whose_scale_changes_leaves_no_trace(options, unscale):
    if unscale and options.get("wrapped"):
        pytest.skip("Accelerate unscales by itself")
    plain, scaled = Loop(), Loop(scaler=scaler(), **options)
    scales = set()
    for i in range(12):
        plain.step(i)
        scaled.step(i, unscale=unscale)
        scales.add(scaled.scaler.get_scale())
    assert len(scales) > 2
    for path, sums in plain.controller.statistics.sums.items():
        torch.testing.assert_close(scaled.controller.statistics.sums[path], sums, rtol=1e-5, atol=0)


@pytest.mark.parametrize("where", ["overflow", "in_head"])
@pytest.mark.parametrize("at", [(0, 1), (3,), (0, 5)])
def test_steps_that_a_grad_scaler_skips_leave_no_trace(where, at):
    plain, scaled = Loop(), Loop(scaler=scaler())
    for i in range(10):
        if i not in at:
            plain.step(i)
        scaled.step(i, **{where: i in at})
    for path, sums in plain.controller.statistics.sums.items():
        torch.testing.assert_close(scaled.controller.statistics.sums[path], sums, rtol=1e-5, atol=0)
    first = where == "in_head" and 0 in at  # whether the optimizer takes steps wasn't known yet
    assert scaled.controller.guard.skipped_steps >= len(at) - (len(at) if first else 0)


def test_what_is_not_finite_in_one_layer_keeps_the_step_out_of_all():
    loop, other = Loop(), Loop()
    for i in range(6):
        if i == 3:
            (loop.model(X) - Y).square().mean().backward()
            loop.controller.layers["first"].statistics.grad[0, 0] = math.nan
            loop.optimizer.step()
            loop.controller.step()
        else:
            loop.step(i)
            other.step(i)
    for path, sums in other.controller.statistics.sums.items():
        assert torch.equal(loop.controller.statistics.sums[path], sums)
    assert loop.controller.guard.skipped_steps == 1


def test_a_first_step_that_is_not_finite_begins_nothing():
    loop = Loop()
    loop.step(0, overflow=True)
    assert loop.controller.statistics.sums == {}
    assert loop.controller.bases() == {}


class NoWaiting(TorchDispatchMode):
    """Refuses to read a number off a tensor, for which a program waits for its GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_without_a_decision_does_not_wait_for_the_device():
    loop = Loop()
    loop.step(0)
    for overflow in (False, True, False):
        (loop.model(X) - Y).square().mean().backward()
        if overflow:
            loop.model.first.statistics.grad[0, 0] = math.inf
        loop.optimizer.step()
        with NoWaiting():
            loop.controller.step()
    assert loop.controller.guard.skipped_steps == 1


def test_decayed_sums_are_those_of_a_plain_loop():
    loop, expected = Loop(), {}
    for i in range(5):
        (loop.model((i + 1) * X) - Y).square().mean().backward()
        new = {p: x.statistics.grad.clone() for p, x in loop.controller.layers.items() if p != "unused"}
        expected = {p: new[p] if p not in expected else expected[p] * 0.98 + new[p] for p in new}
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        loop.controller.step()
    assert loop.controller.statistics.sums.keys() == expected.keys()
    for path, sums in expected.items():
        assert torch.equal(loop.controller.statistics.sums[path], sums)


def test_a_layer_that_is_used_twice_counts_what_each_use_gives():
    loop = Loop()
    layer, seen = loop.model.first, []
    layer.register_forward_hook(lambda module, inputs, y: seen.append((inputs[0], y)) or y.retain_grad())
    (loop.model(X) - Y).square().mean().backward()
    zz = sum((x @ layer.lora_A.t()).t() @ (x @ layer.lora_A.t()) for x, _ in seen)
    dd = sum(s.t() @ s for s in (layer.scaling * y.grad @ layer.lora_B for _, y in seen))
    found = layer.statistics.grad
    torch.testing.assert_close(found[:3], zz)
    torch.testing.assert_close(found[3:6], dd)
    assert (found[6] == 2 * len(X)).all()


def test_micro_batches_of_unequal_size_give_what_one_batch_gives():
    """Where each micro-batch is weighted by its rows, as in a mean over all of them."""
    whole, parts = Loop(), Loop()
    (whole.model(X) - Y).square().mean().backward()
    for rows in (slice(0, 20), slice(20, 29), slice(29, 32)):
        share = len(X[rows]) / len(X)
        ((parts.model(X[rows]) - Y[rows]).square().mean() * share).backward()
    for path in ("first", "second"):
        mine, theirs = (x.controller.layers[path].statistics.grad for x in (parts, whole))
        torch.testing.assert_close(mine, theirs)


def test_a_layer_without_a_gradient_keeps_its_rank_and_is_not_in_the_way():
    loop = Loop(steps=300)
    for i in range(300):
        loop.step(i)
    assert loop.controller.ranks["unused"] == 3
    assert "unused" not in loop.controller.bases()
    loop.controller.sort()


def test_frozen_layers_are_left_as_they_are():
    model = network()
    model.first.requires_grad_(False)
    kept = model.first.lora_A.clone(), model.first.lora_B.clone()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    controller = RankController(model, lambda: torch.zeros(8), 300, optimizer, config=RankConfig(grow_at=()))
    assert set(controller.layers) == {"second", "unused"}
    for _ in range(300):
        (model(X) - Y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    controller.sort()
    assert model.first.rank == 3
    assert torch.equal(model.first.lora_A, kept[0])
    assert torch.equal(model.first.lora_B, kept[1])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="No LoRA layer of this model is trained"):
        RankController(model, lambda: torch.zeros(8), 300, optimizer)


@pytest.mark.parametrize("frozen", ["lora_A", "lora_B"])
def test_one_frozen_matrix_of_a_layer_does_not_keep_it_from_being_pruned(frozen):
    model = network()
    for layer in lora_layers(model).values():
        getattr(layer, frozen).requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    controller = RankController(model, lambda: torch.zeros(8), 300, optimizer)
    before = model.first.delta()
    for _ in range(3):
        (model(X) - Y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    after = model.first.delta()
    assert not torch.equal(after, before)
    with torch.no_grad():
        controller.sort()
        torch.testing.assert_close(model.first.delta(), after)
        controller.resizer.resize({"first": (3, 1)}, controller.bases(), 3)
    assert model.first.rank == 1
