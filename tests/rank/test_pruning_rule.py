"""Pruning rules: the order of the default one, and a rule from outside the package."""

import pytest
import torch
from torch import nn

from rankwise.lora.inject import adapt_at_start_rank
from rankwise.rank import defaults
from rankwise.rank.components import Basis
from rankwise.rank.config import RankConfig
from rankwise.rank.controller import RankController
from rankwise.rank.pruning_rule import (
    PRUNING_RULES,
    ImportanceRule,
    ScoreRule,
    least_important,
    rule_named,
)


class Network(nn.Module):
    """Two linear layers; a component has 40 parameters in the first and 32 in the second."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 8)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class LargestRow(ScoreRule):
    """Keeps the components whose row of A is largest."""

    def score(self, layer, basis, statistics):
        return basis.matrices(layer)[0].double().norm(dim=1)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return adapt_at_start_rank(Network(), 4, targets=("first", "second"))


@pytest.fixture
def largest_row():
    PRUNING_RULES["largest row"] = LargestRow
    yield "largest row"
    del PRUNING_RULES["largest row"]


def taught(network, **options):
    """Return a controller of a network that has taken some steps."""
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.02)
    controller = RankController(network, lambda: torch.zeros(1), 1000, optimizer, **options)
    for _ in range(5):
        network(torch.randn(50, 16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    return controller


def bases(**importances):
    one = torch.eye(4)
    return {path: Basis(one[:2], one[:, :2], torch.tensor(values)) for path, values in importances.items()}


def test_components_go_in_the_order_of_importance_per_parameter(network):
    layers = RankController(network, lambda: torch.zeros(1), 10, torch.optim.SGD(network.parameters())).layers
    found = bases(first=(60.0, 38.0), second=(40.0, 31.0))
    order = [(38.0, "first"), (31.0, "second"), (40.0, "second"), (60.0, "first")]
    assert ImportanceRule().order(found, layers) == order
    proposal = least_important(order, found, 0.5)
    assert (proposal.ranks, proposal.components) == ({"first": 1, "second": 1}, 2)
    assert proposal.share == pytest.approx(69 / 169)


def test_a_rule_from_outside_orders_the_components(network, largest_row):
    controller = taught(network, rule=largest_row)
    for path, basis in controller.bases().items():
        rows = basis.matrices(controller.layers[path])[0].norm(dim=1)
        assert (rows.diff() <= 1e-6).all()
        torch.testing.assert_close(basis.importance.float(), rows)


def test_a_rule_from_outside_reaches_a_training_by_the_defaults(network, largest_row):
    optimizer = torch.optim.SGD(network.parameters())
    config = RankConfig(grow_at=())
    with defaults.replaced(rule=largest_row, config=config):
        controller = defaults.make_controller(network, lambda: torch.zeros(1), 1000, optimizer)
    assert isinstance(controller.rule, LargestRow)
    assert controller.config == config
    after = defaults.make_controller(network, lambda: torch.zeros(1), 1000, optimizer)
    assert type(after.rule) is ImportanceRule


def test_a_rule_is_told_of_a_resize(network):
    class Told(ImportanceRule):
        heard = None

        def resized(self, layer, basis, added):
            self.heard = len(basis.importance), added

    rule = Told()
    controller = taught(network, rule=rule)
    controller.resizer.resize({"first": (4, 1)}, controller.bases(), 5)
    assert rule.heard == (1, 0)
    controller.resizer.resize({"first": (1, 4)}, controller.bases(), 5)
    assert rule.heard == (1, 3)


def test_an_unknown_rule_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="no pruning rule 'imprtance'. Known: importance"):
        rule_named("imprtance")
