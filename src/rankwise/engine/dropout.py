"""Fast dropout on a CPU: random 16-bit numbers compared with a threshold, drawn again in backward instead of being stored.

    key (seed, step, …, module) ─► PCG64 stream ─► 16-bit lanes ─► lane ≥ p·2¹⁶ ─► keep ─► x·keep / (1 − p)

A mask depends only on the key and on the place of its first element in the whole batch. So it doesn't matter how a batch is divided
into micro-batches. The probability is rounded to 1/65536, and the scale is that of the rounded one, so the expectation is exact.
`F.dropout` draws one number at a time on a CPU; drawing 64-bit words takes a tenth of its time. On a GPU torch's own dropout is a
single kernel, and is used instead.
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
    """Return the threshold (of 65536) nearest to probability `p`, and the scale 1 / (1 − p) of the rounded probability."""
    threshold = round(p * LANES)
    return threshold, LANES / (LANES - threshold) if threshold < LANES else 0.0


def keep_mask(key: Key, start: int, shape: Sequence[int], p: float, dtype: torch.dtype) -> Tensor:
    """Return a mask of ones (kept) and zeros, each zero independently with probability `p`.

    Args:
        key: names the random stream: non-negative integers (seed, step, module …).
        start: place of the mask's first element in the stream.
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
    """Return numbers start … start + n − 1 of a stream, int16 [n]."""
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
    """Return x with dropout, scaled in training, whose mask is drawn again in backward.

    Args:
        x: of any shape; element i takes number start + i of the stream.
        p: probability of a zero.
        key: names the random stream; see `keep_mask`.
        start: place of x's first element in the stream.

    Source: Srivastava et al. 2014.
    """
    return cast(Tensor, _Dropout.apply(x, p, key, start)) if p > 0 else x
