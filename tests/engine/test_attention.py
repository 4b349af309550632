"""One fused kernel against grouped products, in float64."""

import numpy as np
import pytest
import torch

import tiny
from float64 import CLOSE, rows_of
from rankwise.engine import attention
from rankwise.engine.attention import attend
from rankwise.engine.packing import pack


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
    draws = torch.stack([attention._fused(q, k, v, layout, 0.3, False, None, 0.3) for _ in range(400)])
    exact = attention._fused(q, k, v, layout, 0.3, False, None, 0.0)
    assert ((draws.mean(0) - exact).abs() <= 5 * draws.std(0) / len(draws) ** 0.5).all()
    assert draws.std(0).min() > 0
