"""Loaded classifiers: their dtype, their labels, and what is drawn from the seed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from rankwise.errors import RankwiseError
from rankwise.models import loading


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> loading.Source:
    """A pretrained body without a head."""
    return loading.locate(str(tiny.model_folder(tmp_path_factory.mktemp("model"))))


def load(source, *, dtype=torch.float32, seed=0):
    return loading.load(source, ["bad", "good"], dtype=dtype, seed=seed)


def test_a_new_head_is_the_same_for_every_dtype_of_the_base(source):
    wide, half = (load(source, dtype=dtype)[0] for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(wide.classifier.weight, half.classifier.weight)
    assert {p.dtype for p in half.bert.encoder.parameters()} == {torch.bfloat16}
    assert not torch.equal(load(source, seed=1)[0].classifier.weight, wide.classifier.weight)


def test_the_config_names_labels_and_problem(source):
    model, found = load(source)
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model.config.problem_type == "single_label_classification"
    assert found.modules == ()
    assert not model.training


def test_more_tokens_than_the_model_takes_are_refused(source):
    assert loading.locate(source.path, 20).max_length == 20
    with pytest.raises(RankwiseError, match="takes 64 tokens at most"):
        loading.locate(source.path, 65)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    """Transformers would make a tokenizer that knows no word, and every answer would be the same."""
    for family in ("bert", "roberta", "gpt2", "deberta-v2", "llama"):
        tiny.classifier(family).save_pretrained(tmp_path / family)
        with pytest.raises(RankwiseError, match="no tokenizer in|can't be loaded"):
            loading.locate(str(tmp_path / family))
    tiny.tokenizer().save_pretrained(tmp_path / "bert")
    loading.locate(str(tmp_path / "bert"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"model_max_length": "x"}, "not supported"), ({"model_max_length": -5}, "model_max_length is -5")],
)
def test_a_tokenizer_that_cannot_work_is_refused(tmp_path, fields, says):
    folder = tiny.model_folder(tmp_path / "model")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(RankwiseError, match=f"tokenizer in .* can't be used: .*{says}"):
        loading.locate(str(folder))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_hidden_layers": 10**9}, "speaks of 1,000,000,000 layers"),
        ({"intermediate_size": 10**9}, "by the config it has .* parameters"),
        ({"num_attention_heads": 5}, "no sequence classifier"),
        ({"model_type": "vit"}, "no sequence classifier|can't be loaded"),
        ({"quantization_config": {"load_in_8bit": True}}, "stored in few bits"),
    ],
    ids=["layers", "width", "heads", "images", "quantized"],
)
def test_a_config_that_no_classifier_can_have_is_refused(tmp_path, fields, says):
    folder = tiny.model_folder(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | fields))
    with pytest.raises(RankwiseError, match=says):
        loading.locate(str(folder))


def test_an_adapter_beside_a_model_is_refused(tmp_path):
    """Transformers would put it on without a word."""
    folder = tiny.model_folder(tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(RankwiseError, match="holds both a model and an adapter"):
        loading.locate(str(folder))


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_not_floating_point_are_refused(tmp_path, kind):
    folder = tiny.model_folder(tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    save_file({**state, name: state[name].to(kind)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RankwiseError, match=f"{name} holds .* and not floating|complex values"):
        load(loading.locate(str(folder)))
