"""Packed and padded runs compared in float64, on rows of random tokens."""

import contextlib

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

import tiny
from rankwise.engine.packed_mode import packed
from rankwise.engine.packing import pack, pad
from rankwise.engine.pooling import packed_logits
from rankwise.lora.inject import adapt
from rankwise.lora.layer import lora_layers
from rankwise.tasks.encoding import Encoded

CLOSE = 1e-10
PAD = 0


class InFloat64(TorchFunctionMode):
    """Answers every request for float32 in float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        wide = [torch.float64 if value is torch.float32 else value for value in args]
        named = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*wide, **named)


@contextlib.contextmanager
def in_float64():
    """Has everything in a block computed in float64, also what a model asks for in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with InFloat64():
            yield
    finally:
        torch.set_default_dtype(before)


def rows_of(lengths, seed=0, types=False):
    """Rows of random tokens with these lengths, and random labels of two classes."""
    rng = np.random.default_rng(seed)
    n = int(sum(lengths))
    return Encoded(
        input_ids=rng.integers(4, 100, n).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        token_type_ids=rng.integers(0, 2, n).astype(np.int8) if types else None,
        labels=rng.integers(0, 2, len(lengths)),
        idx=np.arange(len(lengths), dtype=np.int64),
        n_truncated=0,
    )


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
