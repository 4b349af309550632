"""Attention over packed tokens, as one more implementation in Transformers' registry: no model is subclassed.

    with packed(model):  model(input_ids [1, tokens], position_ids, layout=Layout) ─► every attention module ─► attend(q, k, v, layout)

A row attends to itself only. On a CPU, rows of similar length are gathered into groups [rows · heads, length, head_dim], and attention
is two batched matrix products around a softmax. At the lengths of text classification this is much faster than fused kernels,
above all in backward. Boundaries are passed as the keyword argument `layout`, which models hand on to their attention function, also
under gradient checkpointing.

On a GPU, starting kernels takes the time, so attention is one fused kernel there: variable-length flash attention (Dao 2023) in half
precision without dropout, else torch's own over rows padded to the longest. Dropout is torch's there, too.
"""

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from rankwise.engine.dropout import Key, dropout, keep_mask, rounded
from rankwise.engine.packing import Layout, pack
from rankwise.engine.pooling import packed_logits, pool_rows
from rankwise.errors import RankwiseError
from rankwise.models.families import PER_TOKEN, task_type

NAME = "rankwise_packed"
SOFTMAX_BLOCK = 1 << 18
"""Scores that a softmax computes at a time, so that their float32 copy (1 MB) stays in the cache."""

_NOT_PACKED = {
    "softcap": "a soft cap on its scores",
    "s_aux": "attention sinks",
    "position_bias": "a position bias on its scores",
    "head_mask": "a head mask",
}


class _Mode:
    """What a model's modules share while it is packed: the number of each module, and the layout of the current batch.

    Each thread has its own layout, so that micro-batches can run side by side.
    """

    def __init__(self, model: nn.Module) -> None:
        self.site = {module: i for i, module in enumerate(model.modules())}
        self._here = threading.local()

    @property
    def layout(self) -> Layout:
        return self._here.layout

    @layout.setter
    def layout(self, layout: Layout) -> None:
        self._here.layout = layout

    def enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Keep the layout that the backbone is called with (a forward pre-hook).

        Raises:
            RankwiseError: the call has none.
        """
        if not isinstance(kwargs.get("layout"), Layout):
            raise RankwiseError(
                "The model is in packed mode and was called without a layout. Call it through pooling.packed_logits, "
                "or leave the `packed` block first."
            )
        self.layout = kwargs["layout"]
        return args, {**kwargs, "packed_mode": self}

    def dropout(self, module: nn.Dropout, x: Tensor) -> Tensor:
        """Return x with dropout, in the place of `nn.Dropout.forward`.

        Masks are keyed by the module and by the place of a token (or row) in the whole batch.
        """
        if not module.training or module.p == 0.0:
            return x
        layout = self.layout
        leading = x.numel() // x.shape[-1]
        if leading == layout.tokens + layout.filler:
            first = layout.first_token
        elif leading == len(layout):
            first = layout.first_row
        else:
            return nn.functional.dropout(x, module.p)
        return dropout(x, module.p, (*layout.key, self.site[module]), first * x.shape[-1])


@contextlib.contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Have a model take packed batches inside a `with` block, and restore it exactly behind the block.

    Attention is computed by `attend`. In training on a CPU, every `nn.Dropout` draws its mask from the batch's key. A block inside a
    block for the same model changes nothing.

    Args:
        model: a Transformers model that `can_pack` accepts.
    """
    if cast(Any, model).config._attn_implementation == NAME:
        yield
        return
    mode = _Mode(model)
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()
    on_cpu = next(model.parameters()).device.type == "cpu"
    dropouts = [module for module in model.modules() if on_cpu and type(module) is nn.Dropout]
    with contextlib.ExitStack() as undo:
        for config in configs:
            undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            config._attn_implementation = NAME
        for module in dropouts:
            undo.callback(module.__dict__.pop, "forward")
            setattr(module, "forward", partial(mode.dropout, module))  # noqa: B010 (a method, as types see it)
        hf = cast(Any, model)
        # OPT's language model calls its decoder, past the body that is around it.
        called = {hf.base_model, hf.get_decoder()} if task_type(model) == "CAUSAL_LM" else {hf.base_model}
        for module in called:
            undo.callback(module.register_forward_pre_hook(mode.enter, with_kwargs=True).remove)
        if pooling := pool_rows(model, lambda: mode.layout):
            undo.callback(pooling.remove)
        yield


def can_pack(model: nn.Module) -> tuple[bool, str]:
    """Return whether a model can be trained packed, and if not, why, as the end of a sentence.

    It is tested on two short rows. Packed and alone they must give the same logits, and a packed row must not depend on the other.
    """
    hf, name = cast(Any, model), type(model).__name__
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return False, "a prompt method of PEFT puts its virtual tokens before each row"
    if not isinstance(model, PreTrainedModel):
        return False, f"{name} is not a Transformers model"
    if hf.config.is_encoder_decoder:
        return False, f"{name} has an encoder and a decoder"
    if not hf._supports_attention_backend:
        return False, f"the attention of {name} doesn't go through Transformers' attention registry"
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        return _self_check(model)
    except (RankwiseError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as problem:
        return False, f"a packed pass of {name} failed: {problem}"
    finally:
        for module in was_training:
            module.training = True


@dataclass(frozen=True)
class _Probe:
    """A few rows of tokens, see `packing.Rows`."""

    input_ids: np.ndarray
    offsets: np.ndarray
    token_type_ids: None = None
    labels: None = None
    token_labels: np.ndarray | None = None


@torch.no_grad()
def _self_check(model: nn.Module) -> tuple[bool, str]:
    """Run a short and a longer row packed, each alone, and each packed beside other tokens; return as `can_pack`."""
    hf, name = cast(Any, model), type(model).__name__
    parameter = next(model.parameters())
    rows = _probe_rows(model)

    per_token = task_type(model) in PER_TOKEN
    first = slice(0, len(rows[0]) if per_token else 1)
    second = slice(first.stop, None)

    def together(*pair: np.ndarray) -> Tensor:
        ids = np.concatenate(pair).astype(np.int32)
        probe = _Probe(
            ids,
            np.cumsum([0, *map(len, pair)]),
            token_labels=np.zeros(len(ids), np.int64) if per_token else None,
        )
        with packed(model):
            batch = pack(probe, np.arange(2), model=model, key=(0,))
            return packed_logits(model, batch.to(parameter.device)).double()

    def alone(row: np.ndarray) -> Tensor:
        ids = torch.from_numpy(row)[None].to(parameter.device)
        logits = hf(ids, attention_mask=torch.ones_like(ids)).logits.double()
        return logits[0] if per_token else logits

    ours = together(*rows)
    leak = max(
        float((together(rows[0], rows[1][::-1])[first] - ours[first]).norm()),
        float((together(rows[0][::-1], rows[1])[second] - ours[second]).norm()),
    )
    norm, eps = float(ours.norm()), torch.finfo(parameter.dtype).eps
    if not leak <= eps * norm:
        return False, f"packed rows of {name} see each other outside attention"
    error = float((torch.cat([alone(row) for row in rows]) - ours).norm())
    if not error <= max(eps**0.5, 1e-5) * norm:
        return False, f"packed and single rows of {name} differ by {error / norm:.1g} of their logits"
    return True, ""


def _probe_rows(model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Return two rows of distinct tokens without padding. The second is longer than a short sliding window."""
    windows = [w for m in model.modules() if isinstance(w := getattr(m, "sliding_window", None), int)]
    longer = max([12, *(w + 4 for w in windows if w <= 128)])
    config = cast(Any, model).config.get_text_config()
    usable = np.setdiff1d(np.arange(min(config.vocab_size, 1000)), [config.pad_token_id or 0])
    ids = np.resize(usable, 7 + longer)
    return ids[:7], ids[7:]


def _registered(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens head_dim"],
    key: Float[Tensor, "1 kv_heads tokens head_dim"],
    value: Float[Tensor, "1 kv_heads tokens head_dim"],
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    packed_mode: _Mode | None = None,
    **asked: Any,
) -> tuple[Float[Tensor, "1 tokens heads head_dim"], None]:
    """The attention function that Transformers calls."""
    refused = [what for name, what in _NOT_PACKED.items() if asked.get(name) is not None]
    if refused:
        raise RankwiseError(
            f"This model's attention asks for {refused[0]}, which packed attention doesn't do."
        )
    if layout is None or packed_mode is None:
        raise RankwiseError("This model doesn't hand the boundaries of packed rows on to its attention.")
    if attention_mask is not None or query.shape[:1] != (1,) or query.shape[2] != key.shape[2]:
        raise RankwiseError("This model's attention isn't plain self-attention over its tokens.")
    packed_mode.layout = (
        layout  # a checkpointed layer's dropout comes after its attention, also when it is recomputed
    )
    out = attend(
        query,
        key,
        value,
        layout,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        causal=bool(getattr(module, "is_causal", True) if is_causal is None else is_causal),
        window=sliding_window,
        p=dropout,
        stream=(*layout.key, packed_mode.site[module]),
    )
    return out, None


def _no_mask(*, use_vmap: bool = False, mask_function: Any = None, **_: Any) -> None:
    """Return no mask (Transformers' mask function), because boundaries are passed as a layout.

    Raises:
        RankwiseError: the model combines its mask with one of its own.
    """
    if use_vmap:
        raise RankwiseError(
            "This model adds a mask of its own to attention, which packed attention doesn't support."
        )


AttentionInterface.register(NAME, _registered)
AttentionMaskInterface.register(NAME, _no_mask)


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
