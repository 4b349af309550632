"""Adaptive rank against planted answers, plain autograd and Adam in another basis."""

import copy
import math

import pytest
import torch
from torch import nn

from rankwise.lora.inject import adapt_freely
from rankwise.lora.layer import LoRALinear
from rankwise.rank.components import (
    Basis,
    Components,
    NoOptimizer,
    TorchOptimizer,
    change,
    find_basis,
    identity_basis,
)
from rankwise.rank.compress import compress
from rankwise.rank.config import RankConfig
from rankwise.rank.controller import RankController
from rankwise.rank.evidence import (
    LossIncrease,
    accept_prune_after_trial,
    accept_prune_by_both,
    accept_prune_by_rows,
    factor_bound,
)

CONFIG = RankConfig()
TOLERANCE = CONFIG.tolerance


def layer(rank=4, d_in=12, d_out=10, dtype=torch.float64, **options) -> LoRALinear:
    torch.manual_seed(0)
    adapted = LoRALinear(nn.Linear(d_in, d_out).to(dtype), rank, scaling=1.5, **options)
    nn.init.normal_(adapted.lora_B)
    return adapted


def passed(adapted: LoRALinear, tokens=200, seed=1):
    """A forward and backward with inputs that are far from white; z and dz as plain autograd sees them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, adapted.in_features, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(adapted.in_features, adapted.in_features, generator=generator, dtype=torch.float64)
    dy = torch.randn(tokens, adapted.out_features, generator=generator, dtype=torch.float64)
    dy[::3] = 0.0  # as at padding
    adapted.collect_statistics()
    adapted(x).backward(dy)
    z = x @ adapted.lora_A.t()
    dz = adapted.scaling * dy @ adapted.lora_B
    return adapted.statistics.grad, z.detach(), dz.detach(), dy


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_backward_collects_second_moments_of_tokens_with_a_gradient(dropout):
    adapted = layer(dropout=dropout).eval()
    adapted.train(mode=False)
    moments, z, dz, dy = passed(adapted)
    counted = dy.any(dim=1)
    torch.testing.assert_close(moments[:4], z[counted].t() @ z[counted])
    torch.testing.assert_close(moments[4:8], dz.t() @ dz)
    assert (moments[8] == counted.sum()).all()


def test_the_path_with_dropout_collects_statistics_too():
    adapted = layer(dropout=0.5).train()
    moments, _, dz, dy = passed(adapted)
    torch.testing.assert_close(moments[4:8], dz.t() @ dz)
    assert (moments[8] == dy.any(dim=1).sum()).all()


def test_collecting_changes_neither_output_nor_gradients():
    plain, collecting = layer(), layer()
    collecting.collect_statistics()
    x = torch.randn(9, 12, dtype=torch.float64)
    for adapted in (plain, collecting):
        adapted(x).square().sum().backward()
    assert torch.equal(plain(x), collecting(x))
    assert torch.equal(plain.lora_A.grad, collecting.lora_A.grad)
    assert torch.equal(plain.lora_B.grad, collecting.lora_B.grad)


def test_a_layer_of_rank_0_is_its_base_layer_and_can_grow_again():
    adapted = layer()
    parameters = adapted.lora_A, adapted.lora_B
    A, B = adapted.lora_A.detach().clone(), adapted.lora_B.detach().clone()
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    with_it = adapted(x)
    adapted.resize(A[:0], B[:, :0])
    torch.testing.assert_close(adapted(x), nn.functional.linear(x, adapted.weight, adapted.bias))
    (gradient,) = torch.autograd.grad(adapted(x).sum(), x)
    torch.testing.assert_close(gradient, adapted.weight.sum(0).expand(3, -1))
    adapted.resize(A, B)
    torch.testing.assert_close(adapted(x), with_it)
    assert parameters == (adapted.lora_A, adapted.lora_B)


def test_the_basis_keeps_the_update_and_makes_components_independent():
    adapted = layer()
    moments, z, dz, dy = passed(adapted)
    basis = find_basis(adapted, moments)
    A, B = basis.matrices(adapted)
    torch.testing.assert_close(B @ A, adapted.lora_B @ adapted.lora_A)
    counted = dy.any(dim=1)
    z = z[counted] @ basis.T.t()
    covariance = z.t() @ z / len(z)
    for matrix in (covariance, B.t() @ B):
        off = matrix - torch.diag(matrix.diagonal())
        assert off.abs().max() < 1e-4 * matrix.diagonal().max()
    dz = dz[counted] @ basis.inverse
    expected = len(z) * (z**2).mean(0) * (dz**2).mean(0)
    torch.testing.assert_close(basis.importance, expected, rtol=1e-5, atol=0)
    assert (basis.importance.diff() <= 0).all()
    ratio = A.norm(dim=1) / B.norm(dim=0)
    torch.testing.assert_close(ratio, (adapted.lora_A.norm() / adapted.lora_B.norm()).expand(4).detach())


def test_importance_predicts_the_loss_increase_without_a_component():
    """A softmax regression at its optimum: the loss without a component, against half its importance a row."""
    torch.manual_seed(0)
    x, teacher = torch.randn(20_000, 12, dtype=torch.float64), 0.5 * torch.randn(10, 12, dtype=torch.float64)
    labels = torch.distributions.Categorical(logits=x @ teacher.t()).sample()
    adapted = LoRALinear(nn.Linear(12, 10).double(), 10, scaling=1.0)
    with torch.no_grad():
        adapted.weight.zero_()
        adapted.bias.zero_()
        U, S, Vh = torch.linalg.svd(teacher, full_matrices=False)
        adapted.resize(S.sqrt()[:, None] * Vh, U * S.sqrt())
    adapted.collect_statistics()
    loss = nn.functional.cross_entropy(adapted(x), labels, reduction="sum")
    loss.backward()
    basis = find_basis(adapted, adapted.statistics.grad)
    A, B = basis.matrices(adapted)
    for i in (5, 7):
        others = [k for k in range(10) if k != i]
        without = nn.functional.cross_entropy(x @ (B[:, others] @ A[others]).t(), labels, reduction="sum")
        assert 0.5 * basis.importance[i].item() == pytest.approx((without - loss).item(), rel=0.5)


@pytest.mark.parametrize("c", [1.0, 0.5])
def test_moments_change_basis_as_if_adam_had_run_in_it(c):
    adapted = layer(dtype=torch.float32).float()
    T = torch.randn(4, 4, dtype=torch.float64) + 2 * torch.eye(4, dtype=torch.float64)
    inverse = torch.linalg.inv(T)
    here = {"A": torch.zeros(4, 12), "B": torch.zeros(10, 4)}
    there = {name: value.clone() for name, value in here.items()}
    squares_here, squares_there = copy.deepcopy(here), copy.deepcopy(there)
    moments = torch.zeros(9, 4, dtype=torch.float64)
    mix = torch.randn(4, 4)
    for step in range(400):
        generator = torch.Generator().manual_seed(step)
        dz, z = (
            torch.randn(16, 4, generator=generator) @ mix,
            torch.randn(16, 4, generator=generator) @ mix.t(),
        )
        x, dy = torch.randn(16, 12, generator=generator), torch.randn(16, 10, generator=generator)
        gradient = {"A": dz.t() @ x, "B": dy.t() @ z}
        turned = {"A": inverse.t().float() @ gradient["A"] / c, "B": gradient["B"] @ T.t().float() / c}
        for name in here:
            here[name] = 0.99 * here[name] + 0.01 * gradient[name]
            there[name] = 0.99 * there[name] + 0.01 * turned[name]
            squares_here[name] = 0.99 * squares_here[name] + 0.01 * gradient[name] ** 2
            squares_there[name] = 0.99 * squares_there[name] + 0.01 * turned[name] ** 2
        moments[:4] += z.double().t() @ z.double()
        moments[4:8] += dz.double().t() @ dz.double()
        moments[8] += 16
    optimizer = torch.optim.Adam([adapted.lora_A, adapted.lora_B])
    for name, parameter in (("A", adapted.lora_A), ("B", adapted.lora_B)):
        optimizer.state[parameter] = {
            "step": torch.tensor(400.0), "exp_avg": here[name], "exp_avg_sq": squares_here[name]
        }  # fmt: skip
    basis = Basis(T, inverse, torch.zeros(4, dtype=torch.float64))
    new, _ = change(adapted, moments, basis, None, TorchOptimizer(optimizer), c)
    for name, parameter in (("A", adapted.lora_A), ("B", adapted.lora_B)):
        state = new[parameter][1]
        torch.testing.assert_close(state["exp_avg"], there[name], rtol=1e-3, atol=1e-4)
        ratio = state["exp_avg_sq"] / squares_there[name]
        assert 0.8 < ratio.median() < 1.25
        assert state["step"] == 400


def stepped():
    """A layer after one step of Adam, which therefore has moments; the optimizer; the layer's input."""
    adapted = layer(dtype=torch.float32)
    optimizer = torch.optim.Adam([adapted.lora_A, adapted.lora_B])
    x = torch.randn(5, 12)
    adapted(x).square().sum().backward()
    optimizer.step()
    return adapted, optimizer, x


def test_added_components_keep_the_function_and_the_other_moments():
    adapted, optimizer, x = stepped()
    before, state = adapted(x), {k: v.clone() for k, v in optimizer.state[adapted.lora_A].items()}
    one = torch.eye(4, dtype=torch.float64)
    new = Components(torch.randn(3, 12), torch.zeros(10, 3), torch.zeros(7, 3))
    basis = Basis(one, one, torch.zeros(4, dtype=torch.float64))
    resized, moments = change(adapted, torch.zeros(9, 4), basis, new, TorchOptimizer(optimizer))
    TorchOptimizer(optimizer).resize(resized)
    torch.testing.assert_close(adapted(x), before)
    assert adapted.rank == 7
    assert moments.shape == (15, 7)
    grown = optimizer.state[adapted.lora_A]
    torch.testing.assert_close(grown["exp_avg"][:4], state["exp_avg"])
    torch.testing.assert_close(grown["exp_avg_sq"][:4], state["exp_avg_sq"])
    assert not grown["exp_avg"][4:].any()
    assert (grown["exp_avg_sq"][4:] > 0).all()
    adapted(x).square().sum().backward()
    optimizer.step()


def test_a_layer_pruned_to_rank_0_takes_its_components_back():
    adapted, optimizer, x = stepped()
    whole, theirs = adapted(x), TorchOptimizer(optimizer)
    moments = torch.cat([torch.eye(4), torch.eye(4), torch.full((1, 4), 7.0)])
    aside = Components(adapted.lora_A.detach().clone(), adapted.lora_B.detach().clone(), moments)
    everything = identity_basis(adapted)
    resized, none = change(adapted, moments, everything.first(0), None, theirs)
    theirs.resize(resized)
    assert adapted.rank == 0
    assert none.shape == (1, 0)
    resized, again = change(adapted, none, identity_basis(adapted), aside, theirs)
    theirs.resize(resized)
    torch.testing.assert_close(adapted(x), whole)
    assert torch.equal(again, moments)


def test_rescaled_statistics_equal_those_of_the_rescaled_layer():
    adapted = layer()
    moments, *_ = passed(adapted)
    resized, changed = change(adapted, moments, identity_basis(adapted), None, NoOptimizer(), 0.5)
    x, before = torch.randn(3, 12, dtype=torch.float64), find_basis(adapted, moments).importance
    output = adapted(x)
    NoOptimizer().resize(resized)
    adapted.scaling /= 0.25
    torch.testing.assert_close(adapted(x), output)
    again, *_ = passed(adapted)
    torch.testing.assert_close(changed, again)
    torch.testing.assert_close(find_basis(adapted, changed).importance, before)


# ── The controller ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Network(nn.Module):
    """Two linear layers and something in between."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.offset = nn.Linear(16, 24), nn.Linear(24, 8), nn.LayerNorm(8)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))) + self.offset.bias


def planted(rank: int, layer: str = "first", noise: float = 0.05, seed: int = 0):
    """A network, and rows (x, y) whose y comes from the same network with an update of known rank in one layer.

    In float64, so that what is found doesn't hang on the order in which a machine or its threads sum.
    """
    torch.manual_seed(seed)
    network = Network()
    teacher = copy.deepcopy(network)
    weight = getattr(teacher, layer).weight
    with torch.no_grad():
        if rank:
            U, _, Vh = torch.linalg.svd(torch.randn(weight.shape), full_matrices=False)
            weight += 1.5 * U[:, :rank] @ Vh[:rank]
        x = torch.randn(3000, 16)
        y = teacher(x)
    return network.double(), x.double(), (y + noise * torch.randn_like(y)).double()


def train(network, x, y, steps=600, start=6, seed=0, held_out=300, shuffle=False, batch=50, also_train=()):
    adapt_freely(network, start, targets=("first", "second"), also_train=also_train)
    if shuffle:
        y = y[torch.randperm(len(y))]
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.0)
    held, rest = slice(0, held_out), slice(held_out, None)

    def losses():
        with torch.no_grad():
            return (network(x[held]) - y[held]).square().mean(dim=1)

    controller = RankController(network, losses, steps, optimizer, seed=seed)
    xs, ys = x[rest], y[rest]
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = torch.randint(len(xs), (batch,), generator=generator)
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
        (network(xs[rows]) - ys[rows]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    return controller


def test_the_scaling_follows_the_rank_and_the_function_stays():
    network, x, y = planted(4)
    fresh = adapt_freely(copy.deepcopy(network), 6, targets=("first", "second"))
    adapt_freely(network, 6, targets=("first", "second"))
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.02)
    controller = RankController(network, lambda: torch.zeros(1), 1000, optimizer)
    for _ in range(30):
        (network(x[:50]) - y[:50]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    whole, adapted = network(x), network.first
    alpha = 6 * adapted.scaling

    @torch.no_grad()
    def resize(before, after):
        controller.resizer.resize({"first": (before, after)}, controller.bases(), controller.steps_taken)
        assert adapted.scaling == pytest.approx(alpha / max(1, after))
        return (network(x) - whole).abs().max()

    assert resize(6, 2) > 0.01
    assert resize(2, 6) < 1e-5  # what was set aside comes back
    controller.resizer.aside = {}
    assert resize(6, 9) < 1e-5
    assert resize(9, 0) > 0.01
    assert resize(0, 9) < 1e-5
    resize(9, 2)
    fresh.load_state_dict(network.state_dict())
    torch.testing.assert_close(fresh(x), network(x))


def test_components_go_in_the_order_of_importance_per_parameter():
    network = adapt_freely(Network(), 4, targets=("first", "second"))
    controller = RankController(
        network, lambda: torch.zeros(1), 10, torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    )
    importances = {"first": (60.0, 38.0), "second": (40.0, 31.0)}  # with 40 and 32 parameters a component
    bases = {
        path: Basis(torch.eye(4)[:2], torch.eye(4)[:, :2], torch.tensor(w)) for path, w in importances.items()
    }
    order = [(38.0, "first"), (31.0, "second"), (40.0, "second"), (60.0, "first")]
    assert controller.order(bases) == order


def test_acceptance_follows_rows_and_statistics_both():
    spread = torch.linspace(-1, 1, 64)
    clear, unclear = (LossIncrease.of((shift + 0.05 * spread).double()) for shift in (0.015, 0.005))
    sd = CONFIG.prior_sd
    assert not accept_prune_by_both(clear, 0.006, 1e-4, sd)  # rows clearly miss the components
    assert not accept_prune_by_both(unclear, 0.001, 1e-4, sd)
    assert accept_prune_by_both(unclear, 0.006, 1e-4, sd)
    assert not accept_prune_by_both(unclear, 0.006, 0.01, sd)  # the statistics expect too much
    assert not accept_prune_by_rows(unclear, 0.006)
    assert not accept_prune_after_trial(unclear, 0.001)
    assert accept_prune_after_trial(unclear, 0.006)


@pytest.mark.parametrize(
    ("increase", "error", "expected"),
    [(0.0, 10.0, 0.01), (0.04, 0.01, 0.03), (0.3, 0.03, 0.01), (-0.01, 0.01, 0.01)],
)
def test_the_factor_bound_equals_the_one_by_drawing(increase, error, expected):
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(2_000_000, generator=generator, dtype=torch.float64).mul(CONFIG.prior_sd).exp()
    likely = (-0.5 * ((increase - expected * factors) / error) ** 2).exp()
    factors, order = factors.sort()
    weights = likely[order].cumsum(0)
    bound = factors[(weights < 0.95 * weights[-1]).sum()].item()
    assert factor_bound(increase, error, expected, CONFIG.prior_sd) == pytest.approx(bound, rel=0.05)


IMPORTANCE = 0.6 ** torch.arange(16.0, dtype=torch.float64)


def prune_once(share, losses, left=1000, importance=IMPORTANCE):
    """Return the share of all importance that a prune takes from a layer of rank 16.

    Args:
        share: tolerance, as a share of the gain.
        losses: (missing importance, as a share of all; 300 numbers of mean 0 and variance 1) → losses of 300 rows.
        left: steps after it.
        importance: of the components, the highest first.
    """
    controller, missing = one_layer(losses, left, importance)
    controller.prune(share)
    return missing()


def one_layer(losses, left=1000, importance=IMPORTANCE):
    """Return a controller of a layer of given importances, and a function: the share of all importance that is missing by now."""
    network = adapt_freely(Network(), 16, targets=("first",), also_train=["offset"])
    parameters = [p for p in network.parameters() if p.requires_grad]
    drawn = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = (drawn - drawn.mean()) / drawn.std()
    shares = torch.cat([importance.flip(0).cumsum(0).flip(0) / importance.sum(), torch.zeros(1)]).tolist()
    controller = RankController(
        network, lambda: losses(shares[network.first.rank], drawn), left, torch.optim.SGD(parameters)
    )
    one = torch.eye(16, dtype=torch.float64)
    controller.bases = lambda: {"first": Basis(one, one, importance)}
    return controller, lambda: shares[controller.ranks["first"]]


@pytest.mark.parametrize(
    ("spread", "share", "least", "most"),
    [
        (0.0, TOLERANCE, 0.0, TOLERANCE),
        (1.0, TOLERANCE, TOLERANCE, 0.058),  # a standard error of 1 / √300 of the gain
        (4.0, TOLERANCE, 0.058, CONFIG.noise_cap),  # 0.23: more than may ever go
        (0.0, TOLERANCE / 10, 0.0, TOLERANCE / 10),
        (1.0, TOLERANCE / 10, TOLERANCE / 10, 0.058),
    ],
)
def test_a_prune_may_cost_one_standard_error_of_the_loss(spread, share, least, most):
    """Rows differ in how hard they are; what they miss, five times what the statistics expect, is the same in each."""
    taken = prune_once(share, lambda missing, drawn: 20.0 + spread * drawn + min(1.0, 5 * missing))
    assert least < 5 * taken <= most


def test_the_noise_tolerance_shrinks_with_the_steps_left():
    def losses(missing, drawn):
        return 20.0 + drawn + min(1.0, 5 * missing)

    taken = [prune_once(TOLERANCE, losses, left) for left in (5, 25, 50, 500)]
    assert TOLERANCE / 2 < 5 * taken[0] <= TOLERANCE < 5 * taken[1] <= 0.5 * 0.058 < 5 * taken[2] <= 0.058
    assert taken[3] == taken[2]


@pytest.mark.parametrize(("steps", "prunes"), [(248, [198]), (250, [100, 200])])
def test_a_short_training_is_pruned_at_its_end_only(steps, prunes):
    network = adapt_freely(Network(), 4, targets=("first", "second"))
    parameters = [p for p in network.parameters() if p.requires_grad]
    controller = RankController(network, lambda: torch.zeros(1), steps, torch.optim.SGD(parameters))
    growth = [round(share * steps) for share in CONFIG.grow_at]
    assert sorted(controller.checks) == sorted([*growth, *prunes])


@pytest.mark.parametrize(
    ("spread", "least", "most"),
    [(2.0, 0.0290, 0.0577), (6.0, 0.050, 0.1)],
)
def test_statistics_bound_the_prune_where_rows_see_no_increase(spread, least, most):
    """Any prune has a loss increase of 0 with a standard error of 0.08; only without all is the loss higher."""

    def losses(missing, drawn):
        increase = 1.0 if missing > 0.99 else 0.08 * 300**0.5 * drawn.roll(1) * (missing > 0)
        return 20.0 + spread * drawn + increase

    assert least < prune_once(TOLERANCE, losses) <= most


@pytest.mark.parametrize(
    ("times", "spread"),
    [(1, 0.5), (30, 0.5), (4, 2.0)],  # in the last, rows don't see the increase that the statistics allow
)
def test_a_prune_stays_tolerable_where_statistics_are_wrong_by_a_factor(times, spread):
    """Losses rise with the missing importance, and noise hides what is tolerated."""

    def losses(missing, noise):
        increase = min(1.0, times * missing)
        return 1.0 + increase + spread * math.sqrt(increase) * noise

    assert 0 < times * prune_once(TOLERANCE, losses) <= TOLERANCE
    controller, missing = one_layer(losses)
    compress(controller)
    assert 0 < times * missing() <= TOLERANCE


@pytest.mark.parametrize("seed", range(20))
def test_a_whole_trial_is_pruned_where_rows_miss_nothing(seed):
    """Whatever the importances, and however their sums are rounded."""
    drawn = torch.rand(16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    importance = drawn.sort(descending=True).values
    missing = importance.flip(0).cumsum(0) / importance.sum()
    taken = prune_once(
        0.5, lambda missing, noise: 1.0 + (missing > 0.99) + 0.0 * noise, importance=importance
    )
    assert taken == pytest.approx(missing[missing <= 0.5].max().item())


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_planted_rank_is_found_in_its_layer(rank):
    controller = train(*planted(rank))
    assert controller.ranks == {"first": rank, "second": 0}


def test_where_nothing_is_to_be_learned_the_rank_is_0():
    assert sum(train(*planted(0), also_train=["offset"]).ranks.values()) == 0


@pytest.mark.parametrize(
    ("loss", "spread", "steps", "kept"),
    [
        (1.0, 0.0, 8, 0),
        (0.1, 0.0, 8, 6),
        (0.1, 0.056, 8, 0),
        (1.0, 0.0, 5, 6),
        (0.02, 0.056, 8, 6),
    ],
    ids=[
        "2 % of the loss is more",
        "2 % of the loss is less",
        "the loss has an error of 0.007",
        "not asked half-way",
        "a fifth of the loss is less",
    ],
)
def test_adapters_without_a_sure_gain_go_if_it_cannot_be_much(loss, spread, steps, kept):
    """The gain is 0 and its bound 0.006."""
    network = adapt_freely(Network(), 3, targets=("first", "second"), also_train=["offset"])
    gain = torch.linspace(-0.05, 0.05, 64)

    def losses():
        whole = torch.full((64,), loss) + spread * torch.tensor([1.0, -1.0]).repeat(32)
        return whole if network.first.rank or network.second.rank else whole + gain

    parameters = [p for p in network.parameters() if p.requires_grad]
    controller = RankController(network, losses, 10, torch.optim.AdamW(parameters))
    for _ in range(steps):
        network(torch.randn(5, 16)).square().sum().backward()
        controller.step()
    assert sum(controller.ranks.values()) == kept
    assert [decision.accepted for decision in controller.decisions] == ([kept == 0] if steps == 8 else [])


def test_where_only_adapters_are_trained_one_component_is_left_to_train():
    controller = train(*planted(0))
    assert sum(controller.ranks.values()) == 1
    assert all(decision.changes for decision in controller.decisions)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_layer_that_is_short_of_rank_grows(seed):
    controller = train(*planted(6, seed=seed), start=4)
    assert any(d.kind == "grow" and d.accepted for d in controller.decisions)
    assert controller.ranks == {"first": 6, "second": 0}


def test_the_result_hardly_depends_on_the_start():
    assert {train(*planted(3), start=start).ranks["first"] for start in (4, 6, 8)} == {3}


def test_decisions_follow_from_state_and_seed_alone():
    first, second = (train(*planted(2), steps=200) for _ in range(2))
    assert [d.to_json() for d in first.decisions] == [d.to_json() for d in second.decisions]
