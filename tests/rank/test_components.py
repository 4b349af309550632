"""Statistics and components against plain autograd, a softmax regression and Adam in another basis."""

import copy

import pytest
import torch
from torch import nn

from rankwise.lora.layer import LoRALinear
from rankwise.rank.components import (
    Basis,
    Components,
    NoOptimizer,
    change,
    find_basis,
    identity_basis,
)
from rankwise.rank.controller import RankController
from rankwise.rank.statistics import all_finite
from rankwise.rank.torch_optimizer import TorchOptimizer


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


@pytest.mark.parametrize(("rank", "empty"), [(8, 4), (8, 1), (16, 0), (30, 10)])
def test_a_basis_of_a_padded_layer_or_one_of_a_higher_rank_than_it_can_use_is_finite(rank, empty):
    """Zeros are what an export with one rank for all layers adds."""
    adapted = layer(rank=rank)
    with torch.no_grad():
        adapted.lora_A[rank - empty :] = 0
        adapted.lora_B[:, rank - empty :] = 0
    moments, *_ = passed(adapted)
    basis = find_basis(adapted, moments)
    for tensor in (basis.T, basis.inverse, basis.importance):
        assert tensor.isfinite().all()
    A, B = basis.matrices(adapted)
    torch.testing.assert_close(B @ A, adapted.lora_B @ adapted.lora_A)
    used = min(rank - empty, 10)
    assert (basis.importance[used:] <= 1e-9 * basis.importance[0]).all()


EXTREMES = {
    torch.float16: (0.0, 6e-8, 1.0, 6e4),
    torch.float32: (0.0, 1e-45, 1e-30, 1.0, 1e30, 3e38),
    torch.float64: (0.0, 5e-324, 1e-160, 1.0, 1e160, 1e308),
}
EVENTS = ("sort", 2, 7, 0, "restore", "sort", 3, "restore")


def extreme(dtype: torch.dtype, generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Numbers of one magnitude or two."""
    ends = torch.tensor(EXTREMES[dtype], dtype=dtype)
    two = ends[torch.randint(len(ends), (2,), generator=generator)]
    return two[torch.randint(2, shape, generator=generator)] * torch.rand(shape, generator=generator).to(
        dtype
    )


def extreme_controller(dtype: torch.dtype, seed: int) -> tuple[RankController, LoRALinear]:
    """A, B, their statistics and Adam's moments at the ends of what their dtype holds."""
    generator, adapted = torch.Generator().manual_seed(seed), layer(d_in=6, d_out=5, dtype=dtype)
    optimizer = torch.optim.AdamW([adapted.lora_A, adapted.lora_B])
    controller = RankController(adapted, lambda: torch.zeros(2), 100, optimizer)
    for matrix in (adapted.lora_A, adapted.lora_B):
        value, mean, squares = (extreme(dtype, generator, *matrix.shape) for _ in range(3))
        matrix.data.copy_(value)
        optimizer.state[matrix] = {"step": torch.tensor(1.0), "exp_avg": mean, "exp_avg_sq": squares}
    z, dz = (extreme(dtype, generator, 20, 4) for _ in range(2))
    tokens = torch.full((1, 4), 20.0, dtype=dtype)
    controller.statistics.sums[""] = torch.cat([z.t() @ z, dz.t() @ dz, tokens]).nan_to_num()
    return controller, adapted


@pytest.mark.parametrize("dtype", EXTREMES, ids=str)
@torch.no_grad()
def test_no_resize_writes_a_number_that_is_not_finite(dtype):
    for seed in range(100):
        controller, adapted = extreme_controller(dtype, seed)
        for event in EVENTS:
            if event == "sort":
                controller.sort()
            elif event == "restore":
                controller.resizer.restore(controller.bases())
            else:
                controller.resizer.resize({"": (adapted.rank, event)}, controller.bases(), 1)
            states = [controller.optimizer.state(matrix) for matrix in (adapted.lora_A, adapted.lora_B)]
            assert all_finite(value for state in states for value in state.values()), (seed, event)
            assert all_finite([adapted.lora_A, adapted.lora_B, controller.statistics.of("")]), (seed, event)


@pytest.mark.parametrize("zero", ["lora_A", "lora_B", "z", "less than zero"])
def test_a_layer_that_does_nothing_has_a_finite_basis(zero):
    adapted = layer()
    moments, *_ = passed(adapted)
    with torch.no_grad():
        if zero in ("lora_A", "lora_B"):
            getattr(adapted, zero).zero_()
        else:
            moments[:4] = 0.0 if zero == "z" else -1e-30 * torch.eye(4)
    basis = find_basis(adapted, moments)
    assert all_finite((basis.T, basis.inverse, *basis.matrices(adapted)))
    assert not basis.importance.any()


def test_squares_that_overflowed_are_the_largest_number_in_another_basis():
    adapted, optimizer, _ = stepped()
    moments = torch.cat([torch.eye(4), torch.eye(4), torch.full((1, 4), 7.0)])
    optimizer.state[adapted.lora_A]["exp_avg_sq"][0, 0] = torch.inf
    resized, _ = change(adapted, moments, identity_basis(adapted), None, TorchOptimizer(optimizer))
    largest = torch.finfo(adapted.lora_A.dtype).max
    assert resized[adapted.lora_A][1]["exp_avg_sq"][0, 0] == pytest.approx(largest)
    assert all_finite(resized[adapted.lora_A][1].values())
