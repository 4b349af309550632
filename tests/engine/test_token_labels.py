"""Labels of tokens: packed and padded, logits of labelled tokens alone, against Transformers' own loss in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf

import tiny
from float64 import CLOSE, PAD, in_float64, rows_of
from rankwise.engine import token_losses
from rankwise.engine.compute import Compute
from rankwise.engine.execution import Engine
from rankwise.engine.pack_check import can_pack
from rankwise.tasks.losses import cross_entropy

LENGTHS = [9, 3, 14, 5]


def labelled_rows(seed=0, classes=100):
    """Rows in which about half of the tokens have a label, one of each row at least."""
    rows, rng = rows_of(LENGTHS, seed), np.random.default_rng(seed)
    labels = np.where(
        rng.random(len(rows.input_ids)) < 0.5, rng.integers(0, classes, len(rows.input_ids)), -100
    )
    labels[rows.offsets[1:] - 2] = 7 % classes
    labels[rows.offsets[1:] - 1] = -100  # the last token of a row has nothing to predict
    return replace(rows, labels=None, token_labels=labels)


def loss_and_gradients(model, compute, rows, micro_batches=1):
    """The mean loss over all labelled tokens, from micro-batches."""
    model.zero_grad()
    which, total = np.array([2, 0, 3, 1]), 0.0
    with in_float64(), compute.running(model):
        for batch in compute.batches(model, rows, which, key=(0,), micro_batches=micro_batches):
            losses = cross_entropy(compute.logits(model, batch), batch.labels)
            share = losses.sum() / rows.count_labels(which)
            share.backward()
            total += share.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def transformers_loss(model, rows):
    """The loss that Transformers computes from padded rows. Its labels are the tokens' own, which it shifts itself."""
    length = max(LENGTHS)
    ids, labels, mask = np.full((4, length), PAD), np.full((4, length), -100), np.zeros((4, length), int)
    for row, (first, last) in enumerate(zip(rows.offsets[:-1], rows.offsets[1:], strict=True)):
        ids[row, : last - first], mask[row, : last - first] = rows.input_ids[first:last], 1
        labels[row, 1 : last - first] = rows.token_labels[first : last - 1]
    model.zero_grad()
    with in_float64():
        inputs = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        loss = model(**{name: torch.from_numpy(values) for name, values in inputs.items()}).loss
        loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", tiny.LANGUAGE_MODELS)
def test_packed_and_padded_language_models_have_transformers_loss_and_gradients(family):
    model, rows = tiny.language_model(family).double(), labelled_rows()
    model.config._attn_implementation = "eager"
    assert can_pack(model) == (True, "")
    expected, wanted = transformers_loss(model, rows)
    for padding, micro_batches in (("packed", 1), ("packed", 3), ("longest", 1), ("max_length", 2)):
        compute = Compute(
            device=torch.device("cpu"), max_length=20, pad_id=PAD, padding=padding, engine=Engine()
        )
        loss, gradients = loss_and_gradients(model, compute, rows, micro_batches)
        assert abs(loss - expected) <= CLOSE * expected
        assert (gradients - wanted).norm() <= CLOSE * wanted.norm()


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("family", tiny.LANGUAGE_MODELS)
def test_losses_in_pieces_are_those_of_all_logits(family, frozen, monkeypatch):
    monkeypatch.setattr(token_losses, "TOKENS", 3)
    model, rows = tiny.language_model(family).double(), labelled_rows()
    assert token_losses.has_plain_head(model)
    model.get_output_embeddings().requires_grad_(not frozen)
    compute = Compute(device=torch.device("cpu"), max_length=20, pad_id=PAD)
    weights = torch.linspace(0.5, 2, rows.count_labels(np.arange(4))).double()
    found = []
    for plain in (False, True):
        model.zero_grad()
        with in_float64(), compute.running(model):
            (batch,) = replace(compute, plain_head=plain).batches(model, rows, np.arange(4), key=(0,))
            losses = replace(compute, plain_head=plain).losses(model, batch, cross_entropy)
            (losses * weights).sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((losses.detach(), torch.cat(gradients)))
    for ours, expected in zip(found[1], found[0], strict=True):
        assert (ours - expected).norm() <= CLOSE * expected.norm()


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
def test_packed_and_padded_token_classifiers_give_the_same_logits(family):
    config = type(tiny.CONFIGS[family])(**{**tiny.CONFIGS[family].to_dict(), "num_labels": 3})
    torch.manual_seed(0)
    model = hf.AutoModelForTokenClassification.from_config(config).double().eval()
    model.config._attn_implementation = "eager"
    assert can_pack(model) == (True, "")
    rows = labelled_rows(classes=3)
    losses = [
        loss_and_gradients(
            model, Compute(device=torch.device("cpu"), max_length=20, pad_id=PAD, padding=padding), rows
        )
        for padding in ("packed", "longest")
    ]
    assert abs(losses[0][0] - losses[1][0]) <= CLOSE
    assert (losses[0][1] - losses[1][1]).norm() <= CLOSE * losses[1][1].norm()


def test_selected_rows_keep_the_labels_of_their_tokens():
    rows = labelled_rows()
    some = rows.select(np.array([3, 1]))
    assert some.token_labels.tolist() == [*rows.token_labels[26:31], *rows.token_labels[9:12]]
    assert some.count_labels(np.array([0, 1])) == rows.count_labels(np.array([1, 3]))
