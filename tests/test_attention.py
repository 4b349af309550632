"""Packed against Transformers' own padded forward, in float64: logits and every gradient."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from rankwise.attention import can_pack, packed
from rankwise.data import Encoded
from rankwise.packing import pack, pad
from rankwise.readout import packed_logits

PACKED = ["bert", "roberta", "xlm-roberta", "electra", "distilbert", "modernbert", "gpt2", "llama", "qwen2"]
PADDED = ["deberta-v2", "mpnet"]
IN_FLOAT32 = {"modernbert", "llama", "qwen2"}
"""Families whose own code rounds to float32 inside (rotary angles, RMS norms), whatever the model's dtype."""


def rows_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return Encoded(
        input_ids=rng.integers(4, 100, sum(lengths)).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        token_type_ids=None,
        labels=np.zeros(len(lengths), dtype=np.int64),
        idx=np.arange(len(lengths), dtype=np.int64),
        n_truncated=0,
    )


def outcome(model, logits):
    model.zero_grad()
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def compare(family, lengths):
    model = tiny.classifier(family).double()
    model.config._attn_implementation = "eager"
    model.config.pad_token_id = 0
    rows, which = rows_of(lengths), np.arange(len(lengths))
    close = 1e-6 if family in IN_FLOAT32 else 1e-10
    batch = {name: value for name, value in pad(rows, which, 0).items() if name != "labels"}
    expected, gradients = outcome(model, model(**batch).logits)
    with packed(model):
        logits, ours = outcome(model, packed_logits(model, pack(rows, which, model=model)))
    assert (logits - expected).norm() <= close * expected.norm()
    whole = torch.stack([g.norm() for g in gradients.values()]).norm()
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (ours[name] - gradient).norm() <= close * max(gradient.norm(), whole), name
    again = model(**batch).logits
    assert torch.equal(again, expected), "a later plain call is an ordinary padded call"


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("lengths", [[5, 1, 9, 5, 2], [7], [6, 6, 6]], ids=["mixed", "one", "equal"])
def test_packed_logits_and_gradients_equal_the_padded_models(family, lengths):
    compare(family, lengths)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(PACKED), st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_they_are_equal_at_any_lengths(family, lengths):
    compare(family, lengths)


@pytest.mark.parametrize("family", PACKED)
def test_families_that_pack_are_recognised(family):
    assert can_pack(tiny.classifier(family))[0]


@pytest.mark.parametrize("family", PADDED)
def test_a_family_that_cannot_be_packed_says_why(family):
    possible, reason = can_pack(tiny.classifier(family))
    assert not possible
    assert reason
