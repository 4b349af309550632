"""Cheap dropout: random 16-bit lanes compared with a threshold, drawn again from their key in backward instead of being stored.

    key (seed, step, …, module) ─► PCG64 stream ─► 16-bit lanes ─► lane ≥ p·2¹⁶ ─► keep ─► x·keep / (1 − p)

A mask is a pure function of the key and of where its first element lies in the whole batch, so how a batch is cut into
micro-batches doesn't change it. The probability is rounded to 1/65536 and the scale belongs to the rounded one, so the
expectation is exact. Drawing words takes a tenth of the time of `F.dropout` on a CPU, which draws one number at a time. It is for CPUs
alone: an accelerator's own dropout is a single kernel.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

LANES = 1 << 16
_PER_WORD = 4  # lanes in a 64-bit word

Key = tuple[int, ...]


def rounded(p: float) -> tuple[int, float]:
    """The threshold (of 65536) that realises probability `p`, and the scale that goes with it."""
    threshold = round(p * LANES)
    return threshold, LANES / (LANES - threshold) if threshold < LANES else 0.0


def keep_mask(key: Key, start: int, shape: Sequence[int], p: float, dtype: torch.dtype) -> Tensor:
    """A mask of ones (kept) and zeros, each zero with probability `p` independently.

    Args:
        key: names the stream: non-negative integers (seed, step, module …).
        start: the place in the stream of the mask's first element.
        shape: of the mask.
        p: probability of a zero, rounded to 1/65536.
        dtype: of the mask.
    """
    threshold, _ = rounded(p)
    keep = torch.empty(shape, dtype=dtype)
    if threshold >= LANES:
        return keep.zero_()
    lanes = _lanes(key, start, keep.numel())
    return torch.ge(lanes.view(keep.shape), threshold - LANES // 2, out=keep)


def _lanes(key: Key, start: int, n: int) -> Tensor:
    """Lanes start … start + n of a stream, as int16."""
    first, skip = divmod(start, _PER_WORD)
    words = (skip + n + _PER_WORD - 1) // _PER_WORD
    stream = np.random.PCG64DXSM(np.random.SeedSequence(key)).advance(first)
    drawn = torch.from_numpy(stream.random_raw(words).view(np.int64))
    return drawn.view(torch.int16)[skip : skip + n]


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, key: Key, start: int) -> Tensor:
        ctx.args = (p, key, start)
        return _apply_mask(x, p, key, start)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        return _apply_mask(grad_outputs[0], *ctx.args), None, None, None


def _apply_mask(x: Tensor, p: float, key: Key, start: int) -> Tensor:
    keep = keep_mask(key, start, x.shape, p, x.dtype)
    return keep.mul_(x).mul_(rounded(p)[1])


def dropout(x: Tensor, p: float, key: Key, start: int = 0) -> Tensor:
    """Dropout in training whose mask is drawn again in backward.

    Args:
        x: any shape; element i takes lane start + i of the stream.
        p: probability of a zero.
        key: names the stream; see `keep_mask`.
        start: where x begins in the stream.

    Source: Srivastava et al. 2014, in the inverted form (scaled while training).
    """
    return cast(Tensor, _Dropout.apply(x, p, key, start)) if p > 0 else x
