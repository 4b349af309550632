"""Packed against Transformers' own padded forward, in float64: logits and every gradient, with LoRA and with every weight trained.

Some families compute parts in float32 (RMS norms, rotary angles, softmax), whatever the model's dtype. Rounded like that, two ways to the
same number agree to 1e-6 only, and a small mistake stays hidden. So both sides run with every request for float32 answered in float64.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from float64 import (
    assert_equal,
    assert_packed_is_padded,
    model_of,
    packed_outcome,
    padded_outcome,
    rows_of,
)
from rankwise.engine.packed_mode import packed
from rankwise.engine.packing import pack
from rankwise.errors import RankwiseError

METHODS = ["lora", "full"]
LENGTHS = {"mixed": [5, 1, 9, 5, 2], "one row": [7], "equal": [6, 6, 6], "single tokens": [1, 1]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", tiny.PACKED)
def test_packed_logits_and_gradients_equal_the_padded_models(family, method):
    model = model_of(family, method)
    for lengths in LENGTHS.values():
        assert_packed_is_padded(model, lengths)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} <= trained
    assert any("lora_B" in name for name in trained) == (method == "lora")


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(tiny.PACKED),
    st.sampled_from(METHODS),
    st.lists(st.integers(1, 24), min_size=1, max_size=8) | st.builds(lambda n, k: [n] * k, st.integers(1, 24), st.integers(1, 8)),
    st.integers(0, 2**16),
)  # fmt: skip
def test_packed_equals_padded_at_any_lengths(family, method, lengths, seed):
    assert_packed_is_padded(model_of(family, method), lengths, seed)


@pytest.mark.parametrize("family", ["modernbert", "llama"])
def test_a_difference_of_a_billionth_is_noticed(family):
    """The comparison itself: were float32 inside, a mistake of a billionth would pass for rounding."""
    model = model_of(family, "full")
    rows, which = rows_of([5, 3]), np.arange(2)
    theirs = padded_outcome(model, rows, which)
    weight = next(p for n, p in model.named_parameters() if "layers.0" in n and p.ndim == 2)
    with torch.no_grad():
        weight.mul_(1 + 1e-9)
    with pytest.raises(AssertionError):
        assert_equal(packed_outcome(model, rows, which), theirs)


def test_behind_the_packed_block_calls_are_padded_again():
    model = model_of("bert", "lora")
    rows, which = rows_of([4, 2, 7]), np.arange(3)
    before, _ = padded_outcome(model, rows, which)
    packed_outcome(model, rows, which)
    assert torch.equal(padded_outcome(model, rows, which)[0], before)
    with packed(model), pytest.raises(RankwiseError, match="without a layout"):
        padded_outcome(model, rows, which)
    assert torch.equal(padded_outcome(model, rows, which)[0], before), (
        "also when the block ends with an error"
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("family", "window", "config"),
    [
        ("modernbert", {"local_attention": 6}, {"global_attn_every_n_layers": 2, "num_hidden_layers": 3}),
        ("mistral", {"sliding_window": 3}, {}),
        ("qwen2", {"sliding_window": 4}, {"use_sliding_window": True, "max_window_layers": 1}),
    ],
)
def test_a_sliding_window_shorter_than_the_rows_is_kept(family, window, config, method):
    lengths = [19, 2, 7, 19, 4, 1]
    model, wide = (model_of(family, method, **config, **w) for w in (window, dict.fromkeys(window, 128)))
    assert_packed_is_padded(model, lengths)
    rows, which = rows_of(lengths), np.arange(len(lengths))
    narrow, whole = (packed_outcome(m, rows, which)[0] for m in (model, wide))
    assert not torch.allclose(narrow[0], whole[0]), "the window matters at these lengths"
    assert torch.allclose(narrow[1], whole[1]), "and not where rows are shorter"


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_only_causal_rows_are_blind_to_what_follows(family):
    model = model_of(family, "full")
    hidden = []
    last = next(m for m in model.base_model.modules() if isinstance(m, torch.nn.ModuleList))[-1]
    handle = last.register_forward_hook(
        lambda m, a, out: hidden.append(out[0] if isinstance(out, tuple) else out)
    )
    rows = rows_of([6, 6])
    changed = replace(
        rows, input_ids=np.where(np.isin(np.arange(12), [5, 11]), 3, rows.input_ids).astype(np.int32)
    )
    with packed(model), torch.no_grad():
        for some in (rows, changed):
            batch = pack(some, np.arange(2), model=model)
            model.base_model(input_ids=batch.input_ids, position_ids=batch.position_ids, layout=batch.layout)
    handle.remove()
    before, after = (states[0].view(2, 6, -1) for states in hidden)
    assert not torch.allclose(before[:, 5], after[:, 5])
    assert torch.equal(before[:, :5], after[:, :5]) == (family != "bert")
