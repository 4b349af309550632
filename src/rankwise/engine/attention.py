"""Attention of packed rows: each row attends to itself only.

    q, k, v [1, heads, tokens, head_dim], Layout ─► attend ─► CPU: grouped products     GPU: variable-length flash, or fused and padded

On a CPU, rows of similar length are gathered into groups [rows · heads, length, head_dim], and attention is two batched matrix products
around a softmax. At the lengths of text classification this is much faster than fused kernels, above all in backward.

On a GPU, starting kernels takes the time, so attention is one fused kernel there: variable-length flash attention (Dao 2023) in half
precision without dropout, else torch's own over rows padded to the longest. Dropout is torch's there, too.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.engine.dropout import Key, keep_mask, rounded
from rankwise.engine.layout import Layout

SOFTMAX_BLOCK = 1 << 18
"""Scores that a softmax computes at a time, so that their float32 copy (1 MB) stays in the cache."""


def attend(
    query: Float[Tensor, "1 heads tokens head_dim"],
    key: Float[Tensor, "1 kv_heads tokens head_dim"],
    value: Float[Tensor, "1 kv_heads tokens head_dim"],
    layout: Layout,
    *,
    scaling: float,
    causal: bool = False,
    window: int | None = None,
    p: float = 0.0,
    stream: Key = (),
) -> Float[Tensor, "1 tokens heads head_dim"]:
    """Return softmax(scaling · q·kᵀ)·v within each row of a packed batch.

    Args:
        query, key, value: of all tokens; several query heads may share one key and value head.
        layout: boundaries of the rows.
        scaling: of the scores.
        causal: a token sees itself and the tokens before it in its row.
        window: it sees only tokens less than this far away.
        p: dropout on the probabilities.
        stream: names that dropout's random stream on a CPU.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotary embeddings may promote them
    if window is not None and window >= layout.max_length:
        window = None
    if _flash(query, p):
        return _varlen(query, key, value, layout, scaling, causal, window)
    if query.device.type != "cpu":
        return _fused(query, key, value, layout, scaling, causal, window, p)
    out = _Attention.apply(
        query, key, value, layout, scaling, layout.masks(causal, window, value.dtype), p, stream
    )
    return cast(Tensor, out)


class _Attention(torch.autograd.Function):
    """Grouped attention and its gradients.

        P = softmax(s·Q·Kᵀ + mask)    O = c·(P∘M)·V        M the dropout mask, c = 1/(1 − p)

        dV = c·(P∘M)ᵀ·dO    dP = (dO·Vᵀ)∘M    dS = P∘(dP − Σ dP∘P)    dQ = s·c·dS·K    dK = s·c·dSᵀ·Q

    Kept for backward: q, k and v as the model made them, and P in their dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: Layout,
        scaling: float,
        masks: list[Tensor | None],
        p: float,
        stream: Key,
    ) -> Tensor:
        heads, kv_heads = query.shape[1], key.shape[1]
        q, k, v = (_by_token(x) for x in (query, key, value))
        keep = _keep(layout, heads, p, stream, query)
        out = query.new_empty(layout.tokens + layout.filler, heads, value.shape[3])
        out[layout.tokens :] = 0.0
        kept = []
        for group, slots, kv_slots, mask in _zip(layout, heads, kv_heads, masks):
            K, V = (_gather(x, kv_slots, group.rows * kv_heads) for x in (k, v))
            Q = _gather(q, slots, group.rows * kv_heads)  # query heads that share a key are below each other
            S = Q.new_empty(Q.shape[0], Q.shape[1], group.length)
            torch.baddbmm(S, Q, K.transpose(1, 2), beta=0, alpha=scaling, out=S)
            P = _softmax(S.view(group.rows, heads, group.length, group.length), mask)
            kept.append(P)
            attended = _product(_masked(P, keep, group, heads).view(S.shape), V, rounded(p)[1])
            torch.index_select(
                attended.view(-1, attended.shape[-1]),
                0,
                slots[1],
                out=out[group.tokens].view(-1, attended.shape[-1]),
            )
        ctx.save_for_backward(query, key, value, *kept)
        ctx.args = layout, scaling, p, stream
        return out.unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        layout, scaling, p, stream = ctx.args
        heads, kv_heads = query.shape[1], key.shape[1]
        q, k, v = (_by_token(x) for x in (query, key, value))
        do = grad_outputs[0].reshape(-1, value.shape[3])
        keep = _keep(layout, heads, p, stream, query)
        c = rounded(p)[1]
        needs = ctx.needs_input_grad[:3]
        dq, dk, dv = (
            x.new_empty(layout.tokens + layout.filler, x.shape[1], x.shape[3]) if need else None
            for x, need in zip((query, key, value), needs, strict=True)
        )
        for d in (dq, dk, dv):
            if d is not None:
                d[layout.tokens :] = 0.0
        for (group, slots, kv_slots, _), P in zip(_zip(layout, heads, kv_heads), kept, strict=True):
            batch = group.rows * kv_heads
            dO = _gather(do, slots, batch)
            if slots[2] is not None:  # slots without a token get no gradient
                dO.view(-1, dO.shape[-1]).index_fill_(0, slots[2], 0)
            flat = (batch, -1, group.length)
            if dv is not None:
                _scatter(
                    _product(_masked(P, keep, group, heads).view(flat).transpose(1, 2), dO, c),
                    kv_slots,
                    dv,
                    group,
                )
            if dq is None and dk is None:
                continue
            dP = torch.bmm(dO, _gather(v, kv_slots, batch).transpose(1, 2))
            dP = _masked(dP.view(P.shape), keep, group, heads)
            dS = torch._softmax_backward_data(dP, P, -1, P.dtype).view(flat)
            if dq is not None:
                _scatter(_product(dS, _gather(k, kv_slots, batch), scaling * c), slots, dq, group)
            if dk is not None:
                _scatter(
                    _product(dS.transpose(1, 2), _gather(q, slots, batch), scaling * c), kv_slots, dk, group
                )
        gradients = (None if d is None else d.transpose(0, 1).unsqueeze(0) for d in (dq, dk, dv))
        return (*gradients, None, None, None, None, None)


def _zip(
    layout: Layout, heads: int, kv_heads: int, masks: list[Tensor | None] | None = None
) -> Iterator[Any]:
    return zip(
        layout.groups,
        layout.slots(heads),
        layout.slots(kv_heads),
        masks or [None] * len(layout.groups),
        strict=True,
    )


def _by_token(x: Float[Tensor, "1 heads tokens dim"]) -> Float[Tensor, "tokens_heads dim"]:
    return x.squeeze(0).transpose(0, 1).reshape(-1, x.shape[3])


def _gather(x: Float[Tensor, "tokens_heads dim"], slots: Any, batch: int) -> Float[Tensor, "batch slots dim"]:
    return x.index_select(0, slots[0]).view(batch, -1, x.shape[-1])


def _scatter(grouped: Tensor, slots: Any, out: Float[Tensor, "tokens heads dim"], group: Any) -> None:
    dim = out.shape[-1]
    torch.index_select(grouped.view(-1, dim), 0, slots[1], out=out[group.tokens].view(-1, dim))


def _product(a: Float[Tensor, "b n m"], b: Float[Tensor, "b m k"], scale: float) -> Float[Tensor, "b n k"]:
    if scale == 1.0:
        return torch.bmm(a, b)
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def _softmax(scores: Float[Tensor, "rows heads n n"], mask: Tensor | None) -> Float[Tensor, "rows heads n n"]:
    """Return the softmax in the scores' dtype, computed in float32 (float64 of float64) block by block."""
    if mask is not None:
        scores.add_(mask)
    if scores.dtype in (torch.float32, torch.float64):
        return torch.softmax(scores, -1)
    n = scores.shape[-1]
    for block in _blocks(scores.view(-1, n, n), max(1, SOFTMAX_BLOCK // (n * n))):
        block.copy_(torch.softmax(block, -1, dtype=torch.float32))
    return scores


def _blocks(scores: Float[Tensor, "rows_heads n n"], most: int) -> Sequence[Tensor]:
    """Return views of at most `most` rows and heads each, to be computed one after the other."""
    return scores.split(most)


def _keep(layout: Layout, heads: int, p: float, stream: Key, like: Tensor) -> Tensor | None:
    """Return dropout's mask over the scores of all groups, [scores · heads]; None without dropout."""
    if p == 0.0:
        return None
    return keep_mask(stream, layout.first_score * heads, (layout.scores * heads,), p, like.dtype)


def _masked(P: Float[Tensor, "rows heads n n"], keep: Tensor | None, group: Any, heads: int) -> Tensor:
    if keep is None:
        return P
    return P * keep[group.scores.start * heads : group.scores.stop * heads].view(P.shape)


def _flash(query: Tensor, p: float) -> bool:
    """Return whether the variable-length kernel can be used: CUDA capability 8 or more, half precision, no dropout."""
    if not query.is_cuda or p > 0.0 or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    return (
        query.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and _varlen_kernel() is not None
    )


@cache
def _varlen_kernel() -> Callable[..., Any] | None:
    """Return PyTorch's variable-length kernel where it takes a scale and a window (from 2.11 on), else None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return (
        varlen_attn if {"scale", "window_size"} <= inspect.signature(varlen_attn).parameters.keys() else None
    )


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scaling: float,
    causal: bool,
    window: int | None,
) -> Tensor:
    kernel = _varlen_kernel()
    assert kernel is not None
    back = -1 if window is None else window - 1
    q, k, v = (_heads(x.squeeze(0).transpose(0, 1), query.shape[1]).contiguous() for x in (query, key, value))
    n, seqlens = layout.max_length, layout.cu_seqlens
    out = kernel(q, k, v, seqlens, seqlens, n, n, scale=scaling, window_size=(back, 0 if causal else back))
    return cast(Tensor, out).unsqueeze(0)


def _heads(x: Float[Tensor, "tokens kv_heads dim"], heads: int) -> Float[Tensor, "tokens heads dim"]:
    """Return each key or value head once for every query head that shares it."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scaling: float,
    causal: bool,
    window: int | None,
    p: float,
) -> Tensor:
    """Return attention over rows padded to the longest, without what their padding gives."""
    rows, n = len(layout), layout.whole.length

    def padded(x: Tensor) -> Tensor:
        x = _heads(x.squeeze(0).transpose(0, 1), query.shape[1])
        slots = x.new_zeros(rows * n, x.shape[1], x.shape[2]).index_copy(0, layout.places, x)
        return slots.view(rows, n, x.shape[1], x.shape[2]).transpose(1, 2)

    mask = None if causal and window is None else layout.whole_mask(causal, window, value.dtype)
    out = nn.functional.scaled_dot_product_attention(
        padded(query),
        padded(key),
        padded(value),
        attn_mask=mask,
        dropout_p=p,
        is_causal=causal and mask is None,
        scale=scaling,
    )
    return (
        out.transpose(1, 2).reshape(rows * n, query.shape[1], -1).index_select(0, layout.places).unsqueeze(0)
    )
