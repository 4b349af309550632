"""Loaded classifiers: their dtype, their labels, and what is drawn from the seed."""

import pytest
import torch

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
