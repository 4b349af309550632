"""Every key of a checkpoint and every weight of a model is accounted for before anything is trained or scored."""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import rankwise
import tiny
from rankwise.adapters import compress, predict
from rankwise.errors import RankwiseError
from rankwise.models import loading

NAMES = ["bad", "good"]


def saved(folder: Path, model, tokenizer=None) -> Path:
    model.save_pretrained(folder)
    (tokenizer or tiny.tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture
def whole(tmp_path) -> Path:
    """A classifier with its head."""
    return saved(tmp_path / "whole", tiny.classifier("bert"))


def change(folder: Path, edit) -> None:
    """Edit the tensors of a checkpoint."""
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})


def configure(folder: Path, **fields) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def train_on(folder: Path):
    """Load a checkpoint as training does."""
    return loading.load(loading.locate(str(folder)), NAMES, dtype=torch.float32, seed=0)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[1, 5, 6, 2]])).logits


QUERY = "bert.encoder.layer.0.attention.self.query"
SPOILT = {
    "a weight is missing": (lambda s: s.pop(f"{QUERY}.weight"), f"aren't whole: {QUERY}.weight"),
    "half the pooler is missing": (lambda s: s.pop("bert.pooler.dense.bias"), "aren't whole: bert.pooler"),
    "a weight too many": (lambda s: s.update({f"{QUERY}.gate": torch.ones(2)}), f"doesn't take {QUERY}.gate"),
    "a layer too many": (
        lambda s: s.update({"bert.encoder.layer.2.output.dense.bias": torch.ones(32)}),
        "doesn't take bert.encoder.layer.2",
    ),
    "another size": (
        lambda s: s.update({f"{QUERY}.weight": torch.ones(16, 32)}),
        r"query.weight is \[16, 32\] in the weights and \[32, 32\] by the config",
    ),
    "a part of the head too many": (
        lambda s: s.update({"classifier.gate": torch.ones(2)}),
        "doesn't take classifier.gate",
    ),
    "a compiled model": (
        lambda s: [s.update({f"_orig_mod.{name}": s.pop(name)}) for name in list(s)],
        "aren't whole: .* and 3. more",
    ),
    "a data-parallel model": (
        lambda s: [s.update({f"module.{name}": s.pop(name)}) for name in list(s)],
        "aren't whole",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_weights_that_do_not_fit_are_refused_by_name(whole, case):
    edit, says = SPOILT[case]
    change(whole, edit)
    for load in (rankwise.load, train_on):
        with pytest.raises(RankwiseError, match=says):
            load(whole)


def test_a_config_of_another_size_is_refused(whole):
    configure(whole, intermediate_size=48)
    with pytest.raises(RankwiseError, match=r"intermediate.dense.bias is \[64\] in the weights and \[48\]"):
        rankwise.load(whole)


def test_a_config_of_fewer_layers_is_refused(whole):
    configure(whole, num_hidden_layers=1)
    with pytest.raises(RankwiseError, match="doesn't take bert.encoder.layer.1"):
        rankwise.load(whole)


def adapted(folder: Path, **options):
    """An adapted model as a Trainer's checkpoint holds it."""
    model = rankwise.adapt(tiny.classifier("bert"), 2, alpha=7.0, **options).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    saved(folder, model)
    scaling = {
        f"{path}.lora_scaling": torch.tensor(3.5)
        for path, _ in model.named_modules()
        if path.endswith(("query", "value"))
    }
    change(folder, lambda s: s.update(scaling))
    return model


def test_an_adapted_model_written_whole_computes_what_it_did(tmp_path):
    model, folder = adapted(tmp_path / "whole"), tmp_path / "whole"
    again = rankwise.load(folder)
    torch.testing.assert_close(logits(again), logits(model))
    assert not torch.allclose(logits(again), logits(tiny.classifier("bert")), atol=1e-3)
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        name for name, p in model.named_parameters() if p.requires_grad
    }
    rankwise.merge(folder, tmp_path / "merged")
    plain = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(plain), logits(model))
    with pytest.raises(RankwiseError, match="LoRA layers in it .* is no base to start from"):
        train_on(folder)
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps({**row, "label": "LABEL_0"}) + "\n" for row in tiny.reviews(120)))
    trained = predict.open_trained(folder)
    with pytest.raises(RankwiseError, match="is a whole model; there is no adapter to compress"):
        compress.compress(trained, predict.labelled_rows(trained, table)[0], tmp_path / "smaller")


def test_an_adapted_model_that_does_not_say_its_scaling_is_refused(tmp_path):
    adapted(tmp_path / "whole")
    change(tmp_path / "whole", lambda s: [s.pop(name) for name in list(s) if name.endswith("lora_scaling")])
    for load in (rankwise.load, train_on, lambda folder: rankwise.merge(folder, tmp_path / "out")):
        with pytest.raises(RankwiseError, match="LoRA layers in it .* don't say all"):
            load(tmp_path / "whole")


@pytest.mark.parametrize(
    ("value", "says"),
    [(torch.tensor(float("nan")), "scaling of .* is no number"), (torch.ones(3), "is no number")],
)
def test_a_scaling_that_is_no_number_is_refused(tmp_path, value, says):
    adapted(tmp_path / "whole")
    change(tmp_path / "whole", lambda s: s.update({f"{QUERY}.lora_scaling": value}))
    with pytest.raises(RankwiseError, match=says):
        rankwise.load(tmp_path / "whole")


def test_names_of_earlier_versions_are_read(whole):
    """`gamma` and `beta` of norms, as Google's checkpoints have them."""
    expected = logits(rankwise.load(whole))

    def rename(state):
        for name in [n for n in state if "LayerNorm" in n]:
            state[name.replace(".weight", ".gamma").replace(".bias", ".beta")] = state.pop(name)

    change(whole, rename)
    torch.testing.assert_close(logits(rankwise.load(whole)), expected)


def test_a_peft_model_written_whole_is_refused(tmp_path):
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    model = peft.get_peft_model(tiny.classifier("bert"), config)
    with pytest.raises(RankwiseError, match="aren't whole|LoRA layers in it"):
        rankwise.load(saved(tmp_path / "peft", model.base_model.model))


def test_a_head_that_is_not_there_is_drawn_for_training_alone(whole):
    change(whole, lambda s: (s.pop("classifier.weight"), s.pop("classifier.bias")))
    with pytest.raises(RankwiseError, match=r"has no head \(classifier.bias, classifier.weight\)"):
        rankwise.load(whole)
    model, found = train_on(whole)
    assert found.new == {"classifier.weight", "classifier.bias"}
    assert (
        found.in_words() == "The head is new (classifier.bias, classifier.weight): the checkpoint has none."
    )
    assert torch.equal(model.classifier.weight, train_on(whole)[0].classifier.weight)


def test_a_head_of_another_size_is_said(whole):
    change(
        whole, lambda s: s.update({"classifier.weight": torch.ones(3, 32), "classifier.bias": torch.ones(3)})
    )
    with pytest.raises(RankwiseError, match="has no head .* has 3 outputs, 2 are asked for"):
        rankwise.load(whole)
    assert "the checkpoint's has 3 outputs and not 2" in train_on(whole)[1].in_words()


def test_a_pooler_that_is_not_there_is_trained_and_never_scored(whole):
    change(whole, lambda s: (s.pop("bert.pooler.dense.weight"), s.pop("bert.pooler.dense.bias")))
    with pytest.raises(RankwiseError, match=r"has no pooler \(bert.pooler.dense.bias"):
        rankwise.load(whole)
    found = train_on(whole)[1]
    assert found.modules == ("bert.pooler.dense",)
    assert found.in_words() == "Also new: bert.pooler.dense, which the checkpoint doesn't have."


def test_the_head_of_another_task_is_no_head(tmp_path):
    folder = saved(tmp_path / "other", hf.BertForMultipleChoice(tiny.config("bert")))
    with pytest.raises(RankwiseError, match=r"has no head .*(BertForMultipleChoice|outputs)"):
        rankwise.load(folder)
    found = train_on(folder)[1]
    assert any(name.startswith("classifier.") for name in found.new)


def test_parts_that_no_module_takes_are_said(whole):
    change(whole, lambda s: s.update({"criterion.weight": torch.ones(2)}))
    with pytest.warns(UserWarning, match="Not used of the checkpoint: criterion"):
        rankwise.load(whole)
    assert train_on(whole)[1].unused == ("criterion",)


def test_constants_of_earlier_versions_are_no_weights(whole):
    constants = {
        "bert.encoder.layer.0.attention.masked_bias": torch.tensor(-1e4),
        "bert.encoder.version": torch.ones(1),
        "bert.embeddings.position_ids": torch.arange(64)[None],
        "bert.embeddings.token_type_ids": torch.zeros(1),
    }
    change(whole, lambda s: s.update(constants))
    rankwise.load(whole)
    assert train_on(whole)[1].unused == ()


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_what_is_new_and_unused_in_each_family(family, tmp_path):
    """A whole classifier has everything; its body lacks the head; another head over it is unused, but a language model's own."""
    model, config = tiny.classifier(family), tiny.CONFIGS[family]
    heads = {
        name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")
    }
    folder = saved(tmp_path / "whole", model)
    assert not train_on(folder)[1].new
    torch.testing.assert_close(logits(rankwise.load(folder)), logits(model))

    folder = saved(tmp_path / "body", model.base_model)
    assert train_on(folder)[1].new == heads
    with pytest.raises(RankwiseError, match="has no head"):
        rankwise.load(folder)

    auto = hf.AutoModelForCausalLM if hasattr(model, "score") else hf.AutoModelForMaskedLM
    folder = saved(tmp_path / "pretrained", auto.from_config(config))
    found = train_on(folder)[1]
    body = f"{model.base_model_prefix}."
    assert {name for name in found.new if name.startswith(body)} <= {
        f"{body}pooler.dense.weight", f"{body}pooler.dense.bias", f"{body}pooler.weight", f"{body}pooler.bias",
    }  # fmt: skip
    assert found.new & heads
    if auto is hf.AutoModelForCausalLM:
        assert rankwise.load(folder).config.architectures[0].endswith(("ForCausalLM", "LMHeadModel"))
        return
    with pytest.raises(RankwiseError, match="has no head"):
        rankwise.load(folder)


def test_shards_and_pickles_of_tensors_are_read_like_one_file(tmp_path):
    model = tiny.classifier("bert")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20kB")
    saved(tmp_path / "pickle", model)
    (tmp_path / "pickle" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")
    tiny.tokenizer().save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    for kind in ("shards", "pickle"):
        torch.testing.assert_close(logits(rankwise.load(tmp_path / kind)), logits(model))


def test_a_shard_or_a_weight_that_is_missing_is_named(tmp_path):
    model = tiny.classifier("bert")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20kB")
    tiny.tokenizer().save_pretrained(tmp_path / "shards")
    sorted((tmp_path / "shards").glob("model-*.safetensors"))[0].unlink()
    with pytest.raises(RankwiseError, match="can't be loaded"):
        rankwise.load(tmp_path / "shards")

    saved(tmp_path / "pickle", model)
    (tmp_path / "pickle" / "model.safetensors").unlink()
    state = model.state_dict()
    del state[f"{QUERY}.bias"]
    torch.save(state, tmp_path / "pickle" / "pytorch_model.bin")
    with pytest.raises(RankwiseError, match=f"aren't whole: {QUERY}.bias"):
        rankwise.load(tmp_path / "pickle")


def test_weights_that_are_tied_stand_in_a_checkpoint_once(tmp_path):
    config = hf.BartConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=100, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    model = hf.BartForSequenceClassification(config).eval()
    folder = saved(tmp_path / "bart", model)
    assert sum("embed_tokens" in k or "shared" in k for k in load_file(folder / "model.safetensors")) == 1
    config.num_labels = model.config.num_labels
    torch.testing.assert_close(logits(rankwise.load(folder)), logits(model))
