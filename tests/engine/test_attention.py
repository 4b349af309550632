"""Packed against Transformers' own padded forward, in float64: logits and every gradient, with LoRA and with every weight trained.

Some families go through float32 inside (RMS norms, rotary angles, softmax), whatever the model's dtype. Rounded like that, two
ways to the same number agree to 1e-6 only, and a small mistake hides below. So both sides run with every request for float32
answered in float64.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from float64 import in_float64, rows_of
from rankwise.engine import attention
from rankwise.engine.attention import attend, can_pack, packed
from rankwise.engine.compute import Compute
from rankwise.engine.packing import pack, pad
from rankwise.engine.pooling import packed_logits
from rankwise.errors import RankwiseError
from rankwise.lora.inject import adapt
from rankwise.lora.layer import lora_layers

PACKED = [
    "albert", "bert", "distilbert", "electra", "gemma", "gpt2", "llama", "mistral", "modernbert", "opt", "qwen2", "roberta",
    "xlm-roberta",
]  # fmt: skip
NOT_PACKED = ["deberta-v2", "mpnet"]
METHODS = ["lora", "full"]
LENGTHS = {"mixed": [5, 1, 9, 5, 2], "one row": [7], "equal": [6, 6, 6], "single tokens": [1, 1]}
CLOSE = 1e-10
PAD = 0


def model_of(family, method, **config):
    """A float64 model whose adapters have a random B, with the family's eager attention.

    Its matrices are large, so that attention is far from uniform and a mistake in its scores is seen in the logits.
    """
    model = tiny.classifier(family, num_labels=3, **config).double()
    for parameter in model.parameters():
        parameter.data.mul_(5 if parameter.ndim == 2 else 1)
    model.config._attn_implementation = "eager"
    model.config.pad_token_id = PAD
    if method == "lora":
        adapt(model, rank=4)
        generator = torch.Generator().manual_seed(1)
        for layer in lora_layers(model).values():
            layer.lora_B.data.normal_(0, 0.3, generator=generator)
    return model


def outcome(model, logits):
    """Logits [rows, classes] of `logits()`, and the gradient of a weighted sum of them for every trained parameter."""
    model.zero_grad()
    with in_float64():
        found = logits()
        weights = torch.linspace(-1, 2, found.numel()).view_as(found)
        (found * weights).sum().backward()
    return found.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(ours, theirs):
    (logits, gradients), (expected, wanted) = ours, theirs
    assert logits.dtype == expected.dtype == torch.float64
    assert (logits - expected).norm() <= CLOSE * expected.norm()
    assert gradients.keys() == wanted.keys()
    whole = torch.stack([g.norm() for g in wanted.values()]).norm()
    for name, gradient in wanted.items():
        # A key's bias has no gradient but rounding, so there is a floor: far below the whole gradient's norm.
        assert (gradients[name] - gradient).norm() <= CLOSE * max(gradient.norm(), 1e-3 * whole), name


def padded_outcome(model, rows, which):
    batch = {name: value for name, value in pad(rows, which, PAD).items() if name != "labels"}
    return outcome(model, lambda: model(**batch).logits)


def packed_outcome(model, rows, which):
    with packed(model):
        return outcome(model, lambda: packed_logits(model, pack(rows, which, model=model)))


def assert_packed_is_padded(model, lengths, seed=0):
    types = getattr(model.config, "type_vocab_size", 0) == 2
    rows, which = rows_of(lengths, seed, types), np.random.default_rng(seed).permutation(len(lengths))
    assert_equal(packed_outcome(model, rows, which), padded_outcome(model, rows, which))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", PACKED)
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
    st.sampled_from(PACKED),
    st.sampled_from(METHODS),
    st.lists(st.integers(1, 24), min_size=1, max_size=8) | st.builds(lambda n, k: [n] * k, st.integers(1, 24), st.integers(1, 8)),
    st.integers(0, 2**16),
)  # fmt: skip
def test_they_are_equal_at_any_lengths(family, method, lengths, seed):
    assert_packed_is_padded(model_of(family, method), lengths, seed)


@pytest.mark.parametrize("family", ["modernbert", "llama"])
def test_a_difference_below_float32s_rounding_is_noticed(family):
    """The comparison itself: were float32 inside, a mistake of a billionth would pass for rounding."""
    model = model_of(family, "full")
    rows, which = rows_of([5, 3]), np.arange(2)
    theirs = padded_outcome(model, rows, which)
    weight = next(p for n, p in model.named_parameters() if "layers.0" in n and p.ndim == 2)
    with torch.no_grad():
        weight.mul_(1 + 1e-9)
    with pytest.raises(AssertionError):
        assert_equal(packed_outcome(model, rows, which), theirs)


def test_after_the_packed_block_a_call_is_an_ordinary_padded_call():
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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_modernberts_pooling_is_taken_over_each_row(pooling, method):
    model = model_of("modernbert", method, classifier_pooling=pooling)
    assert_packed_is_padded(model, [4, 1, 9, 9])


def test_mean_pooling_is_not_first_token_pooling():
    rows, which = rows_of([4, 9]), np.arange(2)
    mean, first = (
        packed_outcome(model_of("modernbert", "full", classifier_pooling=pooling), rows, which)[0]
        for pooling in ("mean", "cls")
    )
    assert not torch.allclose(mean, first)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_the_last_token_is_found_where_end_of_text_also_pads(family, method):
    """GPT-2 has no padding token, so its end-of-text token pads: inside a text, at its end, and as a whole text."""
    model = model_of(family, method)
    model.config.pad_token_id = end = 2
    texts = [[5, end, 7, 8], [9, end, end], [4], [end, 6], [11, 12, end, 13, end]]
    rows = replace(rows_of([len(t) for t in texts]), input_ids=np.concatenate(texts).astype(np.int32))
    which = np.arange(len(texts))
    batch = {name: value for name, value in pad(rows, which, end).items() if name != "labels"}
    theirs = outcome(model, lambda: model(**batch).logits)
    assert_equal(packed_outcome(model, rows, which), theirs)


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


@pytest.mark.parametrize("family", PACKED)
def test_families_that_pack_are_recognised(family):
    assert can_pack(tiny.classifier(family)) == (True, "")


@pytest.mark.parametrize("family", NOT_PACKED)
def test_a_family_that_cannot_be_packed_says_why(family):
    possible, reason = can_pack(tiny.classifier(family))
    assert not possible
    assert "attention registry" in reason


def logits_by(how, model, rows, which):
    (batch,) = how.batches(model, rows, which)
    return how.logits(model, batch)


def compute(padding, max_length=24):
    return Compute(
        device=torch.device("cpu"), autocast=None, padding=padding, max_length=max_length, pad_id=PAD
    )


@pytest.mark.parametrize("padding", ["longest", "max_length"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", [*NOT_PACKED, "opt"])  # OPT packs, and may be asked for padded
def test_padded_training_equals_each_row_run_alone(family, method, padding):
    model, rows = model_of(family, method), rows_of([5, 1, 9, 5, 2, 7])
    which = np.array([4, 2, 0, 1])
    batched = outcome(model, lambda: logits_by(compute(padding), model, rows, which))
    alone = [pad(rows, which[i : i + 1], PAD)["input_ids"] for i in range(len(which))]
    assert [ids.shape[1] for ids in alone] == [2, 9, 5, 1]
    assert_equal(batched, outcome(model, lambda: torch.cat([model(input_ids=ids).logits for ids in alone])))


@pytest.mark.parametrize("family", ["roberta", "gpt2", "modernbert"])
def test_a_family_that_packs_gives_the_same_through_compute_packed_or_padded(family):
    model, rows, which = model_of(family, "lora"), rows_of([5, 1, 9, 5, 2, 7]), np.array([4, 2, 0, 1])
    padded, tight = compute("longest"), compute("packed")
    with tight.running(model):
        ours = outcome(model, lambda: logits_by(tight, model, rows, which))
    assert_equal(ours, outcome(model, lambda: logits_by(padded, model, rows, which)))


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 3), (False, 3)])
def test_one_fused_kernel_gives_what_grouped_products_give(causal, window, kv_heads):
    """The way of accelerators, run on the CPU."""
    layout = pack(rows_of([5, 1, 9, 5, 2]), np.arange(5), model=tiny.classifier("bert")).layout
    generator = torch.Generator().manual_seed(0)
    heads = (4, kv_heads, kv_heads)
    q, k, v = (
        torch.randn(1, n, layout.tokens, 8, dtype=torch.float64, generator=generator).requires_grad_()
        for n in heads
    )
    out = [
        attend(q, k, v, layout, scaling=0.3, causal=causal, window=window),
        attention._fused(q, k, v, layout, 0.3, causal, window, 0.0),
    ]
    weights = torch.randn(out[0].shape, dtype=torch.float64, generator=generator)
    ours, theirs = ([x, *torch.autograd.grad((x * weights).sum(), (q, k, v))] for x in out)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= CLOSE * b.norm()


def test_the_fused_kernel_drops_out():
    layout = pack(rows_of([5, 1, 9]), np.arange(3), model=tiny.classifier("bert")).layout
    q, k, v = (torch.randn(1, 2, layout.tokens, 8, dtype=torch.float64) for _ in range(3))
    torch.manual_seed(0)
    draws = torch.stack([attention._fused(q, k, v, layout, 0.3, False, None, 0.3) for _ in range(2000)])
    exact = attention._fused(q, k, v, layout, 0.3, False, None, 0.0)
    assert ((draws.mean(0) - exact).abs() <= 5 * draws.std(0) / len(draws) ** 0.5).all()
    assert draws.std(0).min() > 0
