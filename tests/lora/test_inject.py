"""Which layers get an adapter, and what is trained beside them."""

import copy

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import nn

import tiny
from rankwise.errors import RankwiseError
from rankwise.lora.inject import (
    adapt,
    adapt_at_start_rank,
    find_targets,
    trained,
    trained_beside,
)
from rankwise.lora.layer import lora_layers
from rankwise.models.families import FAMILIES, body_and_heads


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_query_and_value_of_every_family_are_found(family):
    model = tiny.classifier(family)
    targets = find_targets(model)
    per_layer = len(FAMILIES[family].query_value)
    assert len(targets) == per_layer * (1 if family == "albert" else 2)  # ALBERT shares one layer's weights
    assert all(target.endswith(FAMILIES[family].query_value) for target in targets)


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_all_linear_layers_are_those_that_peft_takes(family):
    model = tiny.classifier(family)
    heads = tuple(f"{head}." for head in body_and_heads(model)[1])  # trained whole here, DeBERTa's pooler too
    found = find_targets(model, ["all-linear"])
    wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    taken = {name for name, module in wrapped.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert set(found) == {name for name in taken if not f"{name}.".startswith(heads)}


@pytest.mark.parametrize("family", tiny.LANGUAGE_MODELS)
def test_a_language_models_head_stays_frozen_and_gets_no_adapter(family):
    model = tiny.language_model(family)
    wrapped = get_peft_model(
        copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    )
    taken = {name for name, module in wrapped.base_model.model.named_modules() if hasattr(module, "lora_A")}
    adapt(model, 2, targets=["all-linear"])
    assert set(lora_layers(model)) == taken
    assert trained_beside(model) == []
    adapters = sum(layer.lora_A.numel() + layer.lora_B.numel() for layer in lora_layers(model).values())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == adapters
    assert trained(model).endswith(f"in {len(lora_layers(model))} layers; nothing else.")


def test_a_model_whose_head_cannot_be_told_is_refused():
    config = tiny.config("gpt2")
    with pytest.raises(RankwiseError, match="lm_head.*multiple_choice_head"):
        adapt(hf.GPT2DoubleHeadsModel(config))
    model = tiny.classifier("bert")
    model.base_model_prefix = "body"
    with pytest.raises(
        RankwiseError, match="The head of BertForSequenceClassification can't be told from its body"
    ):
        adapt(model)


def test_a_pooler_that_is_trained_whole_gets_no_adapter():
    model = adapt(tiny.classifier("bert"), targets=["all-linear"], also_train=["bert.pooler"])
    assert "bert.pooler.dense" not in lora_layers(model)
    assert set(trained_beside(model)) == {"classifier", "bert.pooler.dense"}


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_adapting_keeps_logits_and_trains_adapters_and_head_alone(family):
    model = tiny.classifier(family)
    ids = torch.randint(3, 15, (2, 6))
    expected = model(ids).logits
    before = sum(p.numel() for p in model.parameters())
    adapt(model, 2)
    torch.testing.assert_close(model(ids).logits, expected)
    adapters = {f"{path}.{m}" for path in lora_layers(model) for m in ("lora_A", "lora_B")}
    heads = tuple(f"{path}." for path in trained_beside(model))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert adapters <= trained
    assert heads
    assert all(name.startswith(heads) for name in trained - adapters)
    added = sum(p.numel() for p in model.parameters()) - before
    assert added == sum(
        layer.rank * (layer.in_features + layer.out_features) for layer in lora_layers(model).values()
    )


def test_adams_first_step_goes_as_far_from_any_start_rank():
    """So that one learning rate suits them all. In float64 and at a rate so small that the loss falls in proportion to the step."""
    labels = torch.arange(8) % 2

    def fall(start: int, seed: int) -> float:
        ids = torch.randint(3, 15, (8, 6), generator=torch.Generator().manual_seed(seed))
        model = adapt_at_start_rank(tiny.classifier("bert").double().eval(), start, seed=seed)
        factors = [p for layer in lora_layers(model).values() for p in (layer.lora_A, layer.lora_B)]
        before = model(ids, labels=labels).loss
        before.backward()
        torch.optim.Adam(factors, lr=1e-7).step()
        return (before - model(ids, labels=labels).loss).item()

    falls = {start: sum(fall(start, seed) for seed in range(12)) for start in (4, 8, 16, 32)}
    assert all(x == pytest.approx(falls[16], rel=0.2) for x in falls.values()), falls


def test_all_linear_takes_the_bodys_linear_layers_and_not_the_heads():
    model = tiny.classifier("roberta")
    body = [n for n, m in model.roberta.named_modules() if isinstance(m, nn.Linear)]
    assert find_targets(model, ["all-linear"]) == [f"roberta.{name}" for name in body]


def test_targets_are_names_paths_or_patterns():
    model = tiny.classifier("bert")
    assert len(find_targets(model, ["query"])) == 2
    assert find_targets(model, ["bert.encoder.layer.1.attention.self.key"]) == [
        "bert.encoder.layer.1.attention.self.key"
    ]
    assert len(find_targets(model, [r"layer\.0\..*dense"])) == 3


def test_a_misspelt_target_is_refused_with_the_nearest_name():
    with pytest.raises(RankwiseError, match="'qurey'.*Did you mean 'query'"):
        find_targets(tiny.classifier("bert"), ["qurey"])


def test_an_unknown_family_is_refused_with_its_layers_names():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RankwiseError, match="targets="):
        adapt(model)
    adapt(model, 2, targets=["0"])
    assert list(lora_layers(model)) == ["0"]


def test_a_rank_larger_than_the_layer_is_refused_with_its_shape():
    with pytest.raises(RankwiseError, match="query: rank 33 doesn't fit a layer of 32 × 32"):
        adapt(tiny.classifier("bert"), 33)


def test_a_float32_head_stands_on_a_half_precision_body():
    model = tiny.classifier("roberta").to(torch.bfloat16)
    adapt(model, 2)
    logits = model(torch.randint(3, 15, (2, 6))).logits
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_adapting_twice_is_refused():
    model = adapt(tiny.classifier("bert"), 2)
    with pytest.raises(RankwiseError, match="already"):
        adapt(model, 2)
