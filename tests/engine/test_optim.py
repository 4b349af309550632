"""Flat buffers against torch's optimizer on separate tensors, and what a schedule promises."""

import pytest
import torch
from torch import nn

from rankwise.engine.optim import Update, schedule_factor


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.LayerNorm(3))


def gradients(net, step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator) for p in net.parameters()]


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("kind", ["adamw", "adam"])
@pytest.mark.parametrize(("clip", "beta2"), [(0.0, 0.999), (0.5, 0.9)])
def test_updates_are_torchs_and_flat_buffers_clip_each_parameters(kind, clip, beta2, flat):
    """Torch's optimizer, whose learning rate for each parameter is divided by RMS(g / √v̂) where that is above 1; gradients grow."""
    ours, theirs = model(), model()
    update = Update(ours.parameters(), kind, 0.1, 0.2, beta2=beta2, flat=flat)
    groups = [{"params": [p], "weight_decay": 0.2 * (p.ndim >= 2)} for p in theirs.parameters()]
    optimizer = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[kind](
        groups, lr=0.1, betas=(0.9, beta2)
    )
    squares = [torch.zeros(p.shape, dtype=torch.float64) for p in theirs.parameters()]
    clipped = 0
    for step in range(6):
        update.add([g * 2.0**step for g in gradients(ours, step)])
        for parameter, gradient in zip(theirs.parameters(), gradients(theirs, step), strict=True):
            parameter.grad = gradient * 2.0**step
        norm = update.clip(clip)
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), clip or torch.inf)
        assert norm == pytest.approx(float(expected), rel=1e-5)
        update.step(0.1 / (step + 1))
        for square, group in zip(squares, optimizer.param_groups, strict=True):
            parameter, coupled = group["params"][0], group["weight_decay"] * (kind == "adam")
            g2 = (parameter.grad.double() + coupled * parameter.detach().double()) ** 2
            square.mul_(beta2).add_(g2, alpha=1 - beta2)
            rms = float((g2 / (square / (1 - beta2 ** (step + 1)))).mean().sqrt()) if flat else 0.0
            clipped += rms > 1.01
            group["lr"] = 0.1 / (step + 1) / max(1.0, rms)
        optimizer.step()
    assert (clipped >= 10) == flat
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("flat", [True, False])
def test_gradients_add_up_until_a_step_and_are_then_forgotten(flat):
    net = model()
    before = [p.detach().clone() for p in net.parameters()]
    update = Update(net.parameters(), "adamw", 0.1, 0.0, flat=flat)
    one, other = gradients(net, 0), gradients(net, 1)
    update.add([g.clone() for g in one])
    update.add([None if i == 1 else g for i, g in enumerate(other)])
    for i, (p, a, b) in enumerate(zip(net.parameters(), one, other, strict=True)):
        torch.testing.assert_close(p.grad, a if i == 1 else a + b)
    update.step(0.1)
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())
    assert all(not torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_a_parameter_in_a_flat_buffer_stays_the_same_object():
    net = model()
    weight = net[0].weight
    update = Update(net.parameters(), "adamw", 0.1, 0.0, flat=True)
    assert net[0].weight is weight
    x = torch.ones(1, 5)
    before = net(x)
    update.add(gradients(net, 0))
    update.step(0.1)
    assert not torch.equal(net(x), before)


@pytest.mark.parametrize("flat", [True, False])
def test_the_state_of_one_update_continues_in_another(flat):
    first, second = model(), model()
    a = Update(first.parameters(), "adamw", 0.1, 0.1, flat=flat)
    for step in range(3):
        a.add(gradients(first, step))
        a.step(0.1)
    second.load_state_dict(first.state_dict())
    b = Update(second.parameters(), "adamw", 0.1, 0.1, flat=flat)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        b.load_state(q, {k: v.clone() for k, v in a.state(p).items()})
    for update, net in ((a, first), (b, second)):
        update.add(gradients(net, 9))
        update.step(0.1)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_the_learning_rate_rises_and_falls_to_zero_and_stays_there():
    linear, cosine = schedule_factor("linear", 10, 0.2), schedule_factor("cosine", 10, 0.2)
    assert [linear(i) for i in range(3)] == [0.5, 1.0, 1.0]
    assert linear(6) == cosine(6) == pytest.approx(0.5)
    assert linear(10) == linear(20) == 0.0
    assert cosine(10) == cosine(20) == pytest.approx(0.0)
    assert {schedule_factor("constant", 10, 0.0)(i) for i in range(20)} == {1.0}


def test_two_phases_leave_half_the_rate_at_four_fifths_of_the_steps():
    factor = schedule_factor("two-phase", 110, 0.0, 10)
    assert [factor(10 + i) for i in (0, 40, 80, 90, 100, 150)] == pytest.approx(
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    )
    assert factor(4) == 0.5


@pytest.mark.parametrize(("steps", "rise"), [(20, 5), (345, 50), (1000, 60)])
def test_warm_up_takes_the_steps_asked_for_at_least_up_to_a_quarter_of_all(steps, rise):
    factor = schedule_factor("linear", steps, 0.06, 50)
    assert [factor(i) == 1.0 for i in range(steps)].index(True) == rise - 1


@pytest.mark.parametrize("flat", [True, False])
def test_the_norm_of_a_large_gradient_is_the_one_float64_gives(flat):
    weight, bias = nn.Parameter(torch.zeros(3000, 1001)), nn.Parameter(torch.zeros(3))
    update = Update([weight, bias], "adamw", 0.1, 0.0, flat=flat)
    torch.manual_seed(0)
    some = [torch.randn(p.shape) for p in (weight, bias)]
    update.add(some)
    expected = torch.cat([g.double().reshape(-1) for g in some]).norm()
    assert update.clip(0.0) == pytest.approx(float(expected), rel=1e-6)
