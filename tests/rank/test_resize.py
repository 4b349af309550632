"""Layers of other ranks, in any order of events, against the plain products s·B·A."""

import copy
import io
import warnings

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor, nn

from rankwise.lora.inject import adapt_at_start_rank
from rankwise.lora.layer import lora_layers
from rankwise.rank.config import RankConfig
from rankwise.rank.controller import RankController
from rankwise.rank.statistics import all_finite

SIDES = {"0": (10, 12), "2": (12, 7), "4": (7, 10), "5": (10, 12)}
PATHS = st.sampled_from(sorted(SIDES))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(*SIDES["0"]), nn.Tanh(), nn.Linear(*SIDES["2"]), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(*SIDES["4"]), nn.Linear(*SIDES["5"])).double()
    return adapt_at_start_rank(model, 4, targets=tuple(SIDES), seed=1)


class Events(RuleBasedStateMachine):
    """Steps, prunes, growths, restorations, and state dicts that are saved and loaded.

    `updates` are the layers' s·B·A as plain products say they must be; `removed` is what the last prune took from each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = network()
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.01)
        self.controller = RankController(self.model, lambda: torch.zeros(2), 10**6, self.optimizer)
        self.layers, self.removed = lora_layers(self.model), {}
        self.generator = torch.Generator().manual_seed(0)
        self.saved: list[tuple[bytes, dict[str, Tensor]]] = []
        self.step()

    def now(self) -> dict[str, Tensor]:
        with torch.no_grad():
            return {path: x.scaling * x.lora_B @ x.lora_A for path, x in self.layers.items()}

    @rule()
    def step(self) -> None:
        x = torch.randn(20, 10, generator=self.generator, dtype=torch.float64)
        y = torch.randn(20, 12, generator=self.generator, dtype=torch.float64)
        (self.model(x) - y).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.controller.step()
        self.updates = self.now()

    @rule(path=PATHS, share=st.floats(0, 0.99))
    def prune(self, path: str, share: float) -> None:
        before = self.layers[path].rank
        after = int(share * before)
        others = sum(layer.rank for other, layer in self.layers.items() if other != path)
        if before and (after or others):  # without a single component there would be nothing to train
            self.resize(path, after)

    @rule(path=PATHS, added=st.integers(1, 5))
    def grow(self, path: str, added: int) -> None:
        self.resize(path, self.layers[path].rank + added)

    @torch.no_grad()
    def resize(self, path: str, after: int) -> None:
        controller, layer, before = self.controller, self.layers[path], self.layers[path].rank
        controller.resizer.resize({path: (before, after)}, controller.bases(), controller.steps_taken)
        assert layer.rank == after
        self.removed.pop(path, None)
        if after < before:
            A, B, _ = controller.resizer.pruned[path]
            self.removed[path] = layer.scaling * B @ A
            self.updates[path] = self.updates[path] - self.removed[path]

    @rule()
    @torch.no_grad()
    def restore(self) -> None:
        self.controller.resizer.restore(self.controller.bases())
        for path, update in self.removed.items():
            self.updates[path] = self.updates[path] + update
        self.removed = {}

    @rule()
    def sort(self) -> None:
        before = {path: self.moments(path) for path in self.layers}
        self.controller.sort()
        for path, expected in before.items():
            for mine, theirs in zip(self.moments(path), expected, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-10)

    def moments(self, path: str) -> tuple[Tensor, Tensor]:
        """Second moments of the update's output, and of the gradient of its input: no choice of basis changes them."""
        layer, sums = self.layers[path], self.controller.statistics.of(path)
        A, B, r = layer.lora_A.detach(), layer.scaling * layer.lora_B.detach(), layer.rank
        return B @ sums[:r] @ B.t(), A.t() @ sums[r : 2 * r] @ A

    @rule()
    def save(self) -> None:
        buffer = io.BytesIO()
        torch.save(self.model.state_dict(), buffer)
        self.saved.append((buffer.getvalue(), self.now()))

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        stored, updates = data.draw(st.sampled_from(self.saved))
        before = [p.detach().clone() for x in self.layers.values() for p in (x.lora_A, x.lora_B)]
        self.model.load_state_dict(torch.load(io.BytesIO(stored)))
        assert all(torch.equal(update, updates[path]) for path, update in self.now().items())
        fresh = network()
        fresh.load_state_dict(torch.load(io.BytesIO(stored)))
        for path, layer in lora_layers(fresh).items():
            torch.testing.assert_close(layer.delta(), updates[path])
        after = [p for x in self.layers.values() for p in (x.lora_A, x.lora_B)]
        if not all(map(torch.equal, before, after)):
            self.removed = {}
        with warnings.catch_warnings(action="ignore"):
            self.step()

    @invariant()
    def the_function_is_that_of_the_plain_products(self) -> None:
        for path, update in self.now().items():
            torch.testing.assert_close(update, self.updates[path], rtol=1e-6, atol=1e-9)

    @invariant()
    def every_number_is_finite(self) -> None:
        states = [self.optimizer.state.get(p, {}) for x in self.layers.values() for p in (x.lora_A, x.lora_B)]
        assert all_finite(value for state in states for value in state.values())
        assert all_finite([*self.controller.statistics.sums.values(), *self.model.parameters()])
        assert all(map(all_finite, self.controller.resizer.pruned.values()))

    @invariant()
    def everything_has_the_rank_of_its_layer(self) -> None:
        for path, layer in self.layers.items():
            sums = self.controller.statistics.sums.get(path)
            assert sums is None or sums.shape == (2 * layer.rank + 1, layer.rank)
            assert layer.statistics.shape == (2 * layer.rank + 1, layer.rank)
            for parameter in (layer.lora_A, layer.lora_B):
                state = self.optimizer.state.get(parameter, {})
                assert all(v.shape == parameter.shape for k, v in state.items() if k.startswith("exp_avg"))


TestEvents = Events.TestCase
TestEvents.settings = settings(
    stateful_step_count=25, deadline=None, phases=[__import__("hypothesis").Phase.generate]
)


def test_sorts_of_components_that_had_no_gradient_yet_keep_the_optimizers_state_finite():
    """Rounding leaves the squares of their dz below zero once the basis has turned."""
    state = Events()
    state.grow(path="0", added=3)
    state.step()
    for _ in range(3):
        state.sort()
    state.every_number_is_finite()
    state.step()
    state.every_number_is_finite()


def test_prunes_to_rank_0_growths_sorts_and_a_restoration_keep_every_number_finite():
    state = Events()
    state.prune(path="0", share=0.4047037732131409)
    state.prune(path="4", share=0.2924028793588315)
    state.prune(path="2", share=0.6372422598499283)
    state.sort()
    state.grow(path="0", added=3)
    state.prune(path="2", share=1e-09)
    state.sort()
    state.prune(path="0", share=0.6251991859343681)
    state.sort()
    state.grow(path="4", added=1)
    state.prune(path="4", share=0.8)
    state.restore()
    state.step()
    state.sort()
    state.sort()
    state.restore()
    state.sort()
    state.step()
    state.every_number_is_finite()
    state.the_function_is_that_of_the_plain_products()


def controlled(model, **config):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return RankController(model, lambda: torch.zeros(2), 100, optimizer, config=RankConfig(**config))


@torch.no_grad()
def test_a_layer_that_was_pruned_grows_by_what_is_asked_and_keeps_its_function():
    model = network()
    controller, layer = controlled(model), lora_layers(model)["0"]
    nn.init.normal_(layer.lora_B)
    controller.resizer.resize({"0": (4, 1)}, {}, 10)
    before = layer.delta()
    controller.resizer.resize({"0": (1, 2)}, {}, 20)
    assert layer.rank == 2
    torch.testing.assert_close(layer.delta(), before)
    assert not controller.resizer.pruned


@torch.no_grad()
def test_layers_that_grow_together_are_given_different_components():
    model = network()
    controller, layers = controlled(model), lora_layers(model)
    controller.resizer.resize({"0": (4, 8), "5": (4, 8)}, {}, 20)
    assert not torch.equal(layers["0"].lora_A[4:], layers["5"].lora_A[4:])
    again = network()
    controlled(again).resizer.resize({"0": (4, 8), "5": (4, 8)}, {}, 20)
    for path in ("0", "5"):
        assert torch.equal(lora_layers(again)[path].lora_A, layers[path].lora_A)


def test_a_copy_of_a_model_goes_its_own_way():
    model = network()
    other = copy.deepcopy(model)
    controller = controlled(other)
    with torch.no_grad():
        controller.resizer.resize({"0": (4, 1)}, {}, 10)
    assert lora_layers(model)["0"].rank == 4
    assert lora_layers(other)["0"].rank == 1
