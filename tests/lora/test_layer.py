"""The LoRA layer against a numerical gradient, a dense product and PEFT's own layer."""

import copy
import io
import pickle

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

import rankwise
import tiny
from rankwise.errors import RankwiseError
from rankwise.lora.layer import LoRALinear, lora_layers


def adapted(base: nn.Module, rank: int = 3, **options) -> LoRALinear:
    layer = LoRALinear(
        base, rank, scaling=options.pop("scaling", 1.5), fan_in_fan_out=isinstance(base, Conv1D), **options
    )
    torch.nn.init.normal_(layer.lora_B)
    return layer


def linear(dtype=torch.float64) -> nn.Linear:
    return nn.Linear(7, 5).to(dtype)


def conv1d(dtype=torch.float64) -> Conv1D:
    layer = Conv1D(5, 7).to(dtype)
    nn.init.normal_(layer.bias)
    return layer


BASES = pytest.mark.parametrize("make", [linear, conv1d])


@BASES
def test_a_fresh_adapter_leaves_the_function_unchanged(make):
    base = make()
    x = torch.randn(2, 4, 7, dtype=torch.float64)
    expected = base(x)
    assert torch.equal(LoRALinear(base, 3, scaling=2.0, fan_in_fan_out=make is conv1d)(x), expected)


@BASES
def test_forward_is_the_dense_product_with_w0_plus_sba(make):
    layer = adapted(make())
    x = torch.randn(2, 4, 7, dtype=torch.float64)
    dense = (layer.weight.t() if layer.fan_in_fan_out else layer.weight) + 1.5 * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer(x), x @ dense.t() + layer.bias)


@BASES
def test_gradients_agree_with_numerical_ones(make):
    layer = adapted(make())
    x = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)

    def f(x, A, B):
        return torch.func.functional_call(layer, {"lora_A": A, "lora_B": B}, (x,))

    assert torch.autograd.gradcheck(
        f, (x, layer.lora_A.detach().requires_grad_(), layer.lora_B.detach().requires_grad_())
    )


def test_no_gradient_is_asked_of_an_input_that_needs_none():
    layer = adapted(linear())
    layer(torch.randn(4, 7, dtype=torch.float64)).sum().backward()
    assert layer.lora_A.grad is not None
    assert layer.weight.grad is None


@BASES
def test_merging_changes_nothing_and_unmerging_restores_the_weight(make):
    layer = adapted(make())
    x, weight = torch.randn(4, 7, dtype=torch.float64), layer.weight.clone()
    expected = layer(x)
    layer.merge()
    torch.testing.assert_close(layer(x), expected)
    layer.merge()  # a second call must not add the update twice
    torch.testing.assert_close(layer(x), expected)
    layer.unmerge()
    torch.testing.assert_close(layer.weight, weight, rtol=0, atol=1e-14)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adapters_stay_in_float32_beside_a_base_of_any_dtype(dtype):
    layer = adapted(linear(dtype))
    x = torch.randn(4, 7).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert layer.lora_A.dtype == layer.lora_A.grad.dtype == torch.float32
    exact = x.double() @ (layer.weight.double() + layer.delta().double()).t() + layer.bias.double()
    torch.testing.assert_close(y.double(), exact, rtol=0.02, atol=0.05 if dtype != torch.float32 else 1e-5)


def test_output_and_gradients_equal_pefts():
    torch.manual_seed(0)
    ours = adapted(nn.Linear(7, 5), rank=3, scaling=2.0)
    theirs = nn.Sequential(copy.deepcopy(nn.Linear(7, 5)))
    theirs[0].load_state_dict({"weight": ours.weight, "bias": ours.bias})
    theirs = inject_adapter_in_model(LoraConfig(r=3, lora_alpha=6, target_modules=["0"]), theirs)
    A, B = theirs[0].lora_A["default"].weight, theirs[0].lora_B["default"].weight
    with torch.no_grad():
        A.copy_(ours.lora_A)
        B.copy_(ours.lora_B)
    x1 = torch.randn(4, 7, requires_grad=True)
    x2 = x1.detach().clone().requires_grad_()
    y1, y2 = ours(x1), theirs(x2)
    torch.testing.assert_close(y1, y2)
    y1.square().sum().backward()
    y2.square().sum().backward()
    for mine, peft in [(x1, x2), (ours.lora_A, A), (ours.lora_B, B)]:
        torch.testing.assert_close(mine.grad, peft.grad)


def test_under_autocast_the_layer_computes_in_the_autocast_dtype():
    layer = adapted(nn.Linear(7, 5))
    x = torch.randn(4, 7, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


def test_dropout_acts_on_the_adapters_input_alone_and_only_in_training():
    layer = adapted(linear(), dropout=0.5)
    x = torch.randn(64, 7, dtype=torch.float64)
    base = nn.functional.linear(x, layer.weight, layer.bias)
    torch.manual_seed(0)
    update = layer(x) - base
    torch.manual_seed(0)
    expected = 1.5 * nn.functional.dropout(x, 0.5) @ layer.lora_A.t() @ layer.lora_B.t()
    torch.testing.assert_close(update, expected)
    layer.eval()
    torch.testing.assert_close(layer(x) - base, 1.5 * x @ layer.lora_A.t() @ layer.lora_B.t())


def test_a_layer_has_at_least_one_component():
    with pytest.raises(ValueError, match="7 × 5: 1 or more"):
        LoRALinear(linear(), 0, scaling=1.0)
    assert LoRALinear(linear(), 6, scaling=1.0).rank == 6  # files may hold more than a layer can use


def test_a_state_dict_brings_its_rank_and_its_scaling():
    """Also where s isn't alpha/r, as with rank-stabilised LoRA."""
    source, target = adapted(linear(), 4, scaling=16 / 4**0.5), adapted(linear(), 2, scaling=16 / 2**0.5)
    target.load_state_dict(source.state_dict())
    assert target.scaling == source.scaling == 8.0
    x = torch.randn(3, 7, dtype=torch.float64)
    torch.testing.assert_close(target(x), source(x))
    whole = nn.Sequential(adapted(linear(), 1))
    whole.load_state_dict(nn.Sequential(source).state_dict(), strict=True)
    torch.testing.assert_close(whole(x), source(x))


def test_a_state_dict_without_a_scaling_is_of_the_same_alpha():
    source, target = adapted(linear(), 4, scaling=2.0), adapted(linear(), 2, scaling=4.0)
    state = source.state_dict()
    del state["lora_scaling"]
    target.load_state_dict(state)
    assert target.scaling == 2.0


@pytest.mark.parametrize("name", ["lora_A", "lora_B"])
def test_a_state_dict_of_a_layer_of_other_sides_is_refused(name):
    layer = adapted(linear(), 3)
    state = layer.state_dict()
    other = adapted(nn.Linear(9, 9).double(), 4)
    state |= {"lora_A": torch.randn(4, 7), "lora_B": torch.randn(5, 4), name: getattr(other, name)}
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict(state)


def test_a_merged_layer_is_neither_saved_nor_loaded_nor_resized():
    layer = adapted(linear())
    state = layer.state_dict()
    layer.merge()
    for act in (
        layer.state_dict,
        lambda: layer.load_state_dict(state),
        lambda: layer.resize(layer.lora_A[:1].detach(), layer.lora_B[:, :1].detach()),
    ):
        with pytest.raises(RankwiseError, match="merged into its weight. Call its unmerge"):
            act()
    layer.unmerge()
    layer.load_state_dict(state)


@BASES
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_base_that_is_trained_again_gets_its_gradient(make, name):
    layer = adapted(make())
    getattr(layer, name).requires_grad_(True)
    x = torch.randn(4, 7, dtype=torch.float64)
    layer(x).square().sum().backward()
    W, bias = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
    dense = (W.t() if layer.fan_in_fan_out else W) + layer.delta()
    (x @ dense.t() + bias).square().sum().backward()
    torch.testing.assert_close(getattr(layer, name).grad, {"weight": W, "bias": bias}[name].grad)


def test_second_derivatives_are_refused_instead_of_wrong():
    layer = adapted(linear())
    x = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_a_file(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_a_file])
@pytest.mark.parametrize("rank", [None, 3])
def test_a_copy_of_an_adapted_model_computes_and_trains_as_the_model(copied, rank):
    model = rankwise.adapt(tiny.classifier("bert"), rank)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.1)
    ids = torch.tensor([[1, 4, 8, 6, 2]])
    model(ids).logits.square().sum().backward()  # what backward leaves may be there
    other = copied(model)
    assert torch.equal(other(ids).logits, model(ids).logits)
    model.zero_grad()
    other.zero_grad()
    for one in (model, other):
        one(ids).logits.square().sum().backward()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert mine.grad is theirs.grad is None or torch.equal(mine.grad, theirs.grad), name
    state = model.state_dict()
    lora_layers(other)["bert.encoder.layer.0.attention.self.query"].resize(
        torch.zeros(1, 32), torch.zeros(32, 1)
    )
    other.load_state_dict(state)
    assert torch.equal(other(ids).logits, model(ids).logits)
    assert all((layer.statistics is None) == (rank is not None) for layer in lora_layers(other).values())
