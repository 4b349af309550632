"""Frozen weights in 8 and 4 bits: the products and gradients of the weights they stand for, in fewer bytes."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rankwise
import tiny
from rankwise.adapters import attach, peft_format
from rankwise.config import ModelOptions, RunConfig
from rankwise.errors import RankwiseError
from rankwise.lora.layer import LoRALinear, lora_layers
from rankwise.lora.quantized import QuantizedWeight, check, quantize
from rankwise.run_folder import RunFolder
from rankwise.runs.prepare import check_base_bits

pytest.importorskip("bitsandbytes")

FAST = ["--dtype", "float32", "--epochs", "1", "--batch-size", "16", "--lr", "1e-3", "--threads", "1"]
bits = pytest.mark.parametrize("bits", [8, 4])


@bits
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantized_layer_computes_with_the_weight_that_it_stands_for(bits, dtype):
    layer = nn.Linear(48, 96).to(dtype).requires_grad_(False)
    weight = QuantizedWeight.of(layer.weight, bits)
    assert (weight.shape, weight.dtype) == (layer.weight.shape, dtype)
    x = torch.randn(5, 48, dtype=dtype, requires_grad=True)
    expected = F.linear(x, weight.dequantize(), layer.bias)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), x)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    said = layer(x)
    assert torch.equal(said, expected)
    assert torch.equal(torch.autograd.grad(said.square().sum(), x)[0], expected_grad)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.02), (4, 0.12)])
def test_a_quantized_weight_is_close_and_small(bits, most):
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0)) * 0.02
    packed = QuantizedWeight.of(weight, bits)
    assert ((packed.dequantize() - weight).abs().mean() / weight.abs().mean()).item() < most
    size = packed.packed.nbytes + packed.state.absmax.nbytes
    assert size < 1.2 * bits / 32 * weight.nbytes
    assert packed.untyped_storage().nbytes() == 0


@bits
def test_gradients_equal_those_on_the_dequantized_base(bits):
    base = nn.Linear(48, 96)
    there = LoRALinear(base, 4, scaling=2.0, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(there.lora_B, std=0.1)
    packed = QuantizedWeight.of(base.weight.detach(), bits)
    x, results = torch.randn(7, 48, requires_grad=True), []
    for weight in (packed, packed.dequantize()):
        there.weight = nn.Parameter(weight, requires_grad=False)
        y = there(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, there.lora_A, there.lora_B])])
    for mine, expected in zip(*results, strict=True):
        assert torch.allclose(mine, expected, atol=1e-6)


@bits
@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "modernbert", "llama"])
def test_a_model_equals_the_one_with_dequantized_weights(bits, family):
    model = tiny.classifier(family)
    rankwise.adapt(model, 4)
    n = quantize(model, bits)
    ids = torch.tensor([[1, 4, 5, 6, 2]])
    with torch.no_grad():
        said = model(input_ids=ids).logits
        layers = [m for m in model.modules() if isinstance(getattr(m, "weight", None), QuantizedWeight)]
        assert len(layers) == n >= 2 * 4
        for layer in layers:
            layer.weight = nn.Parameter(layer.weight.dequantize(), requires_grad=False)
        assert torch.allclose(model(input_ids=ids).logits, said, atol=1e-6)


def test_what_is_trained_and_what_is_no_linear_layer_stays():
    model = tiny.classifier("bert")
    rankwise.adapt(model, 4)
    quantize(model, 8)
    kept = [name for name, p in model.named_parameters() if not isinstance(p, QuantizedWeight)]
    assert "bert.embeddings.word_embeddings.weight" in kept
    assert "classifier.weight" in kept
    assert all(f"{path}.lora_A" in kept for path in lora_layers(model))
    with pytest.raises(
        RankwiseError, match="GPT2ForSequenceClassification has no frozen linear layers to keep in 8 bits"
    ):
        quantize(tiny.classifier("gpt2").requires_grad_(False), 8)


@bits
def test_a_quantized_weight_is_not_changed_in_place(bits):
    """It would be changed in a dequantized copy that nobody reads."""
    layer = LoRALinear(nn.Linear(48, 96), 4, scaling=2.0)
    nn.init.normal_(layer.lora_B)
    state, x = layer.state_dict(), torch.randn(3, 48)
    layer.weight = nn.Parameter(QuantizedWeight.of(layer.weight.detach(), bits), requires_grad=False)
    before = layer(x)
    with pytest.raises(RankwiseError, match=f"weight in {bits} bits can't be changed in place"):
        layer.merge()
    with torch.no_grad(), pytest.raises(RankwiseError, match="can't be changed in place"):
        layer.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="can't be changed in place"):
        layer.load_state_dict(state)
    assert not layer.merged
    assert torch.equal(layer(x), before)


@bits
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_quantized_model_is_quantized_likewise(bits, copied):
    model = rankwise.adapt(tiny.classifier("bert"), 4)
    n = quantize(model, bits)
    other, ids = copied(model), torch.tensor([[1, 4, 5, 6, 2]])
    weights = [m for m in other.modules() if isinstance(getattr(m, "weight", None), QuantizedWeight)]
    assert len(weights) == n
    assert all(module.packed is module.weight.packed for module in weights)
    assert torch.equal(other(ids).logits, model(ids).logits)


def test_an_adapter_of_a_quantized_base_loads_on_the_base_itself(tmp_path):
    model = tiny.classifier("bert")
    rankwise.adapt(model, 4)
    quantize(model, 4)
    peft_format.save(model, tmp_path)
    adapter = peft_format.read(tmp_path)
    assert lora_layers(attach.attach(tiny.classifier("bert"), adapter))
    other = tiny.classifier("bert")
    with torch.no_grad():
        other.bert.embeddings.word_embeddings.weight.mul_(1.1)
    with pytest.raises(RankwiseError, match="other weights, the rest of the base differs"):
        attach.attach(other, adapter)


@bits
def test_a_run_is_trained_and_evaluated_on_its_quantized_base(told, tmp_path, monkeypatch, bits):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    model = tiny.model_folder(tmp_path / "bert")
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.reviews(80)))
    result = told(
        "train",
        "t.jsonl",
        "--model",
        model,
        "--method",
        "adaptive",
        "--base-bits",
        bits,
        "--out",
        "run",
        *FAST,
    )
    plain = told("train", "t.jsonl", "--model", model, "--method", "adaptive", "--out", "plain", *FAST)
    # the 12 linear layers of a BERT of 2, which were in float32
    frozen = 2 * (4 * 32 * 32 + 2 * 32 * 64) * 4 / 1e6
    saved = plain["peak_memory_mb"]["weights"] - result["peak_memory_mb"]["weights"]
    assert saved == pytest.approx(frozen * (1 - bits / 32), rel=0.1)
    assert result["total_params"] == plain["total_params"]
    assert told("evaluate", "run")["loss"] == pytest.approx(result["scores"]["validation"]["loss"], rel=1e-5)
    assert RunFolder("run").read_run()["facts"]["base_bits"] == bits


@bits
def test_plan_knows_what_it_saves(told, bits):
    options = (
        "plan",
        "--model",
        "roberta-base",
        "--lengths",
        64,
        "--methods",
        "lora",
        "--memory-mode",
        "fast",
        "--dtype",
        "bfloat16",
    )
    plain, few = (told(*options, *more)["configurations"][0] for more in ((), ("--base-bits", bits)))
    frozen = 12 * (4 * 768 * 768 + 2 * 768 * 3072)
    saved = (plain["peak_memory_mb"]["weights"] - few["peak_memory_mb"]["weights"]) * 1e6
    scales = frozen / {8: 256, 4: 64}[bits] * 4
    assert saved == pytest.approx(frozen * (2 - bits / 8) - scales, rel=0.01)


def test_where_it_cannot_be_it_is_refused():
    with pytest.raises(RankwiseError, match="works on cpu and cuda, not on mps"):
        check(torch.device("mps"))
    config = RunConfig(method="full", model=ModelOptions(base_bits=4))
    with pytest.raises(RankwiseError, match="`base_bits=4` is for lora and adaptive, .* full is neither"):
        check_base_bits(config, "full", torch.device("cpu"))


def test_without_the_library_it_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(
        RankwiseError, match=r"needs bitsandbytes. Install it: pip install 'rankwise\[quantized\]'"
    ):
        check(torch.device("cpu"))
