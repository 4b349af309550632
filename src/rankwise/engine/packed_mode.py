"""A Transformers model in packed mode: it takes all rows as one sequence, and no model is subclassed.

    with packed(model):  model(input_ids [1, tokens], position_ids, layout=Layout) ─► every attention module ─► attend(q, k, v, layout)

Packed attention is one more implementation in Transformers' registry. Boundaries are passed as the keyword argument `layout`, which models
hand on to their attention function, also under gradient checkpointing.
"""

import contextlib
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from rankwise.engine.attention import attend
from rankwise.engine.dropout import dropout
from rankwise.engine.layout import Layout
from rankwise.engine.pooling import pool_rows
from rankwise.errors import RankwiseError
from rankwise.models.families import task_type

NAME = "rankwise_packed"
"""Of packed attention in Transformers' registry."""
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
    packed_mode.layout = layout  # for the dropout behind it, also where a checkpointed layer is recomputed
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
