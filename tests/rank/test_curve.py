"""The curve of an adapter's sizes, against layers that are really made smaller."""

import pytest
import torch
from torch import nn

from rankwise.errors import RankwiseError
from rankwise.lora.inject import adapt_at_start_rank
from rankwise.rank.controller import RankController
from rankwise.rank.curve import Curve, CurvePoint, measure


@pytest.fixture(scope="module")
def trained():
    """A network of two layers, trained for a while without a check, and rows that it wasn't trained on."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8)).double()
    x = torch.randn(900, 16, dtype=torch.float64)
    y = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8)).double()(x).detach()
    adapt_at_start_rank(network, 6, targets=("0", "2"))
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.02)
    controller = RankController(network, lambda: losses(network, x[:300], y[:300]), 10_000, optimizer)
    for step in range(100):
        rows = slice(300 + 6 * step, 306 + 6 * step)
        (network(x[rows]) - y[rows]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    controller.sort()
    return network, controller, x[:300], y[:300]


def losses(network, x, y):
    with torch.no_grad():
        return (network(x) - y).square().mean(dim=1)


def test_each_size_has_the_loss_of_layers_cut_to_its_ranks(trained):
    network, controller, x, y = trained
    before = {path: layer.rank for path, layer in controller.layers.items()}
    whole = losses(network, x, y)
    curve = measure(
        controller, lambda: (losses(network, x, y), {"error": losses(network, x, y).mean().item()})
    )
    assert controller.ranks == before
    torch.testing.assert_close(losses(network, x, y), whole)
    assert [point.params for point in curve.points] == sorted({p.params for p in curve.points}, reverse=True)
    assert curve.points[-1].params == 0
    matrices = {path: (layer.lora_A.data, layer.lora_B.data) for path, layer in controller.layers.items()}
    increase = torch.zeros(300)
    for point in curve.points[1:]:
        for path, layer in controller.layers.items():
            A, B = matrices[path]
            layer.lora_A.data, layer.lora_B.data = A[: point.ranks[path]], B[:, : point.ranks[path]]
        increase = losses(network, x, y) - whole
        assert point.loss_increase == pytest.approx(increase.mean().item(), abs=1e-9)
        assert point.error == pytest.approx(increase.std().item() / len(x) ** 0.5, rel=1e-6)
        assert point.scores["error"] == pytest.approx(losses(network, x, y).mean().item())
    assert curve.gain == pytest.approx(increase.mean().item())
    for path, layer in controller.layers.items():
        layer.lora_A.data, layer.lora_B.data = matrices[path]


def made(*sizes: tuple[int, float]) -> Curve:
    points = (CurvePoint(params, {"layer": params // 10}, increase, 0.0, {}) for params, increase in sizes)
    return Curve(tuple(points), gain=1.0, rows=100)


def test_a_size_is_found_by_parameters_and_by_loss():
    curve = made((100, 0.0), (70, -0.01), (50, 0.004), (30, 0.02), (10, 0.015), (0, 1.0))
    assert curve.within_params(69).params == 50
    assert curve.within_params(1000).params == 100
    assert curve.within_loss(0.01).params == 50
    assert curve.within_loss(0.05).params == 10
    assert curve.within_loss(0.0).params == 70
    with pytest.raises(RankwiseError, match="`max_params=9` is too small: the smallest size measured has 10"):
        curve.within_params(9)


def test_a_curve_reads_as_it_was_written():
    curve = made((100, 0.0), (50, 0.004), (0, 1.0))
    assert Curve.from_json(curve.to_json()) == curve
