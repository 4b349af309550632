"""An adapter meets only the base that it was trained on: rounding is told from other weights, and what differs is said."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rankwise
import tiny
from rankwise.adapters import fingerprint
from rankwise.errors import RankwiseError

DTYPES = ["float32", "bfloat16", "float16"]


@pytest.fixture
def base(tmp_path) -> Path:
    folder = tmp_path / "base"
    tiny.classifier("bert").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def trained_on(base: Path, out: Path, dtype: str = "float32") -> Path:
    """An adapter of a base in some number type."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base, dtype=getattr(torch, dtype))
    rankwise.adapt(model, 2)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    rankwise.save(model, out)
    return out


def change(base: Path, edit) -> None:
    state = load_file(base / "model.safetensors")
    edit(state)
    save_file(state, base / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("there", DTYPES)
@pytest.mark.parametrize("here", DTYPES)
def test_a_base_in_another_number_type_is_the_same_base(base, tmp_path, there, here):
    adapter = trained_on(base, tmp_path / "adapter", there)
    rankwise.load(adapter, dtype=getattr(torch, here))
    rankwise.merge(adapter, tmp_path / "merged")


@pytest.mark.parametrize("there", DTYPES)
@pytest.mark.parametrize("kept", ["bfloat16", "float16"])
def test_a_base_that_was_written_in_another_number_type_is_the_same_base(base, tmp_path, there, kept):
    adapter = trained_on(base, tmp_path / "adapter", there)
    change(base, lambda s: s.update({name: value.to(getattr(torch, kept)) for name, value in s.items()}))
    rankwise.load(adapter)


QUERY = "bert.encoder.layer.0.attention.self.query"
OTHERS = {
    "one adapted layer": (lambda s: s[f"{QUERY}.weight"].mul_(1.05), f"{re.escape(QUERY)} differs by 0.0"),
    "two adapted layers": (
        lambda s: [s[name].add_(0.02) for name in s if "layer.1.attention.self" in name],
        "layer.1.* differs by .*and [23] more",
    ),
    "a layer without adapter": (
        lambda s: s["bert.encoder.layer.1.output.dense.weight"].mul_(1.3),
        "what has no adapter differs by 0.1",
    ),
    "a bias": (
        lambda s: s["bert.encoder.layer.1.output.dense.bias"].add_(0.05),
        "the rest of the base differs",
    ),
    "a norm": (lambda s: s["bert.embeddings.LayerNorm.weight"].mul_(1.1), "the rest of the base differs"),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_weights_are_refused_with_what_differs_and_by_how_much(base, tmp_path, case, dtype):
    adapter = trained_on(base, tmp_path / "adapter")
    edit, says = OTHERS[case]
    change(base, edit)
    if dtype != "float32" and "rest" in says:
        return  # below what rounding to bfloat16 may do to all other weights together
    with pytest.raises(
        RankwiseError, match=f"another base model: it was trained on other weights, .*{says}"
    ) as refused:
        rankwise.load(adapter, dtype=getattr(torch, dtype))
    assert "has changed since then" in str(refused.value)
    assert ("rounding to bfloat16 and float32 explains" in str(refused.value)) == (dtype == "bfloat16")


def test_a_vocabulary_that_has_grown_is_refused_by_its_size(base, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base)
    model.resize_token_embeddings(103)
    rankwise.save(rankwise.adapt(model, 2), tmp_path / "adapter")
    with pytest.raises(
        RankwiseError, match="the rest of the base is .* entries here, .* entries in training"
    ):
        rankwise.load(tmp_path / "adapter")


@pytest.mark.parametrize("scale", [0.003, 0.1, 3.0])
def test_the_estimate_is_near_the_difference(scale):
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(30):
        W = torch.randn(50, 60, generator=generator)
        other = W + scale * torch.randn(50, 60, generator=generator)
        sketches = [fingerprint._sketch(f"layer {i}", one) for one in (W, other)]
        found.append(fingerprint._apart(*sketches)[0] * sketches[1].norm / (W - other).norm().item())
    assert max(found) < fingerprint.FACTOR
    assert 0.8 < torch.tensor(found).square().mean().sqrt() < 1.2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_moves_a_weight_less_than_is_allowed_and_not_much_less(dtype):
    generator = torch.Generator().manual_seed(0)
    for size in (1e-7, 1e-3, 1.0):
        W = size * torch.randn(64, 64, generator=generator)
        one, other = (fingerprint._sketch("layer", w) for w in (W, W.to(getattr(torch, dtype))))
        apart, explained = fingerprint._apart(one, other)
        assert 0.05 * explained < apart < explained


def test_equal_adapters_have_equal_fingerprints(base, tmp_path):
    """And one of 24 layers takes a few kilobytes."""
    texts = []
    for name in ("a", "b"):
        with safe_open(trained_on(base, tmp_path / name) / "adapter_model.safetensors", "pt") as file:
            texts.append(file.metadata()["base_fingerprint"])
    assert texts[0] == texts[1]
    assert len(texts[0]) < 200 * len(json.loads(texts[0]))


@pytest.mark.parametrize(
    "text", ["[]", "{}x", '{"a": [1]}', '{"a": ["float32", [2], 1.0, 0.0, "AAAA"]}', "7"]
)
def test_what_is_no_fingerprint_says_so(text):
    with pytest.raises(ValueError, match="no fingerprint"):
        fingerprint.difference(text, "{}")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_was_trained_in_half_precision_is_evaluated_and_merged(told, tmp_path, monkeypatch, dtype):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in tiny.reviews(40)))
    model = tiny.model_folder(tmp_path / "base")
    run = told("train", table, "--model", model, "--dtype", dtype, "--epochs", "1", "--out", tmp_path / "run")
    assert told("evaluate", tmp_path / "run")["accuracy"] == run["score"]
    told("merge", tmp_path / "run", "--out", tmp_path / "merged")
