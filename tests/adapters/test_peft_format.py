"""Adapters on disk: PEFT is the independent reader and writer."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import tiny
from rankwise.adapters import attach, peft_format
from rankwise.errors import RankwiseError
from rankwise.lora.inject import adapt, find_targets, insert
from rankwise.lora.layer import lora_layers

IDS = torch.randint(3, 15, (3, 7), generator=torch.Generator().manual_seed(0))


def trained(base, **options):
    """An adapted copy of a base in which every trained weight is random."""
    model = adapt(copy.deepcopy(base), options.pop("rank", 3), **options)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    return model.eval()


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("targets", [(), ("all-linear",)], ids=["query-value", "all-linear"])
@pytest.mark.parametrize("family", [f for f in tiny.CONFIGS if f != "albert"])
def test_peft_loads_what_is_saved_with_equal_logits(family, targets, tmp_path):
    base = tiny.classifier(family)
    model = trained(base, targets=targets)
    peft_format.save(model, tmp_path)
    peft = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    with torch.no_grad():
        assert relative(peft(IDS).logits, model(IDS).logits) <= 1e-5


@pytest.mark.parametrize("family", tiny.LANGUAGE_MODELS)
def test_peft_loads_a_language_models_adapter_with_equal_logits(family, tmp_path):
    base = tiny.language_model(family)
    model = trained(copy.deepcopy(base), targets=["all-linear"])
    peft_format.save(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    assert config["modules_to_save"] is None
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert all("lora_" in name for name in names)
    peft = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    with torch.no_grad():
        assert relative(peft(IDS).logits, model(IDS).logits) <= 1e-5


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"rank_pattern": True, "alpha_pattern": True}, {}])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_what_peft_saves_loads_here_with_equal_logits(family, options, tmp_path):
    one = {
        "bert": "layer.0.attention.self.query",
        "gpt2": "h.1.attn.c_attn",
        "llama": "layers.1.self_attn.v_proj",
    }[family]
    values = {"use_rslora": True, "rank_pattern": {one: 5}, "alpha_pattern": {one: 11}}
    options = {name: values[name] for name in options}
    base = tiny.classifier(family)
    fused = {"fan_in_fan_out": True} if family == "gpt2" else {}
    config = LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=7, init_lora_weights=False, **options, **fused)
    peft = get_peft_model(copy.deepcopy(base), config).eval()
    peft.save_pretrained(tmp_path)
    ours = attach.attach(copy.deepcopy(base), peft_format.read(tmp_path)).eval()
    with torch.no_grad():
        assert relative(ours(IDS).logits, peft(IDS).logits) <= 1e-5


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_loading_restores_logits_and_trained_parameters(family, tmp_path):
    base = tiny.classifier(family)
    model = trained(base)
    peft_format.save(model, tmp_path)
    back = attach.attach(copy.deepcopy(base), peft_format.read(tmp_path)).eval()
    assert torch.equal(back(IDS).logits, model(IDS).logits)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in back.named_parameters() if p.requires_grad} == names


@pytest.mark.parametrize("family", ["bert", "gpt2", "modernbert"])
def test_a_merged_model_loads_in_transformers(family, tmp_path):
    model = trained(tiny.classifier(family))
    expected = model(IDS).logits
    attach.merge(model).save_pretrained(tmp_path)
    assert not lora_layers(model)
    merged = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_label_names_travel_with_the_adapter(tmp_path):
    model = tiny.classifier("bert")
    model.config.id2label = {0: "schlecht", 1: "größer"}
    peft_format.save(adapt(model), tmp_path)
    assert peft_format.read(tmp_path).label_names == ["schlecht", "größer"]


def test_a_new_pooler_is_saved_and_restored(tmp_path):
    base = tiny.classifier("bert")
    model = trained(base, also_train=["bert.pooler"])
    peft_format.save(model, tmp_path)
    assert "base_model.model.bert.pooler.dense.weight" in load_file(tmp_path / peft_format.WEIGHTS)
    peft = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    back = attach.attach(copy.deepcopy(base), peft_format.read(tmp_path)).eval()
    torch.testing.assert_close(peft(IDS).logits, model(IDS).logits)
    assert torch.equal(back(IDS).logits, model(IDS).logits)


def test_alpha_over_r_is_right_for_layers_of_different_ranks(tmp_path):
    base = tiny.classifier("bert")
    paths = find_targets(base)
    model = copy.deepcopy(base)
    insert(model, dict(zip(paths, [1, 2, 3, 4], strict=True)), dict.fromkeys(paths, 0.7))
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_()
    peft_format.save(model, tmp_path)
    peft = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    torch.testing.assert_close(peft(IDS).logits, model(IDS).logits)


def test_another_base_model_is_refused(tmp_path):
    peft_format.save(trained(tiny.classifier("bert")), tmp_path)
    adapter = peft_format.read(tmp_path)
    with pytest.raises(RankwiseError, match="another base model.*other weights"):
        attach.attach(tiny.classifier("bert", seed=5), adapter)
    with pytest.raises(RankwiseError, match="another base model.*does not have"):
        attach.attach(tiny.classifier("roberta"), adapter)


def test_the_same_base_in_bfloat16_is_recognised(tmp_path):
    base = tiny.classifier("bert")
    peft_format.save(trained(base), tmp_path)
    attach.attach(copy.deepcopy(base).to(torch.bfloat16), peft_format.read(tmp_path))


def test_another_number_of_labels_is_refused(tmp_path):
    peft_format.save(trained(tiny.classifier("bert", num_labels=3)), tmp_path)
    with pytest.raises(RankwiseError, match="for 3 labels; this model has 2"):
        attach.attach(tiny.classifier("bert"), peft_format.read(tmp_path))


def test_damaged_and_unsupported_files_are_refused(tmp_path):
    with pytest.raises(RankwiseError, match="holds no adapter"):
        peft_format.read(tmp_path)
    peft_format.save(trained(tiny.classifier("bert")), tmp_path)
    weights = tmp_path / peft_format.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RankwiseError, match="damaged"):
        peft_format.read(tmp_path)
    save_file({"base_model.model.classifier.weight": torch.zeros(1)}, weights)
    with pytest.raises(RankwiseError, match="no LoRA matrices"):
        peft_format.read(tmp_path)
    config = json.loads((tmp_path / peft_format.CONFIG).read_text())
    for change, message in [({"use_dora": True}, "use_dora"), ({"peft_type": "IA3"}, "IA3 adapter")]:
        (tmp_path / peft_format.CONFIG).write_text(json.dumps(config | change))
        with pytest.raises(RankwiseError, match=message):
            peft_format.read(tmp_path)
