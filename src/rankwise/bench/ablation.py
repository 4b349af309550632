"""What each part of the engine buys: our LoRA with one part replaced by what it replaced.

rankwise bench --random-weights roberta-base --lengths qnli --contenders "rankwise lora" "without packing" "without ..."
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.bench import ours
from rankwise.bench.config import BenchConfig
from rankwise.engine import attention, autotune, dropout, packing, training
from rankwise.engine.execution import Engine
from rankwise.engine.optim import Update
from rankwise.engine.packing import Layout
from rankwise.lora import layer as lora_layer


def enter(config: BenchConfig, *, without: str) -> ours.Ours:
    """Our LoRA without one part, in this process for good.

    Args:
        config: resolved.
        without: an entry of `PARTS`.
    """
    if without == "packing":
        return ours.enter(config, method="lora", padding="longest")
    if without == "a bfloat16 base":
        runner = ours.enter(replace(config, dtype="float32"), method="lora")
        autocast = None if config.dtype == "float32" else getattr(torch, config.dtype)
        return replace(runner, compute=replace(runner.compute, autocast=autocast))
    PARTS[without]()
    return ours.enter(config, method="lora")


def _put(module: Any, name: str, value: Any) -> Callable[[], None]:
    return partial(setattr, module, name, value)


def _masked_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, *, scaling: float, causal: bool = False,
    window: int | None = None, p: float = 0.0, stream: Any = (),
) -> Tensor:  # fmt: skip
    """PyTorch's fused attention over all tokens of the batch, the boundaries in a mask."""
    lengths = torch.from_numpy(np.append(layout.lengths, layout.filler) if layout.filler else layout.lengths)
    row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    mask = row[:, None] == row
    out = F.scaled_dot_product_attention(query, key, value, mask[None, None], p, scale=scaling)
    return out.transpose(1, 2)


def _separate_products(layer: lora_layer.LoRALinear, x: Tensor) -> Tensor:
    """W0 and the adapter as autograd sees them, as PEFT writes them."""
    z = F.linear(layer.dropout(x).to(layer.lora_A.dtype), layer.lora_A)
    return F.linear(x, layer.weight, layer.bias) + (layer.scaling * F.linear(z, layer.lora_B)).to(x.dtype)


def _bernoulli(key: Any, start: int, shape: Any, p: float, dtype: torch.dtype) -> Tensor:
    """PyTorch's own draws, one number each."""
    generator = torch.Generator().manual_seed(hash((key, start)) % 2**63)
    return torch.empty(shape, dtype=dtype).bernoulli_(1.0 - p, generator=generator)


def _both_bernoulli() -> None:
    dropout.keep_mask = attention.keep_mask = _bernoulli


def _one_after_the_other(step: Any, rows: Any, threads: int, cache: Any, key: str) -> Engine:
    return Engine()


PARTS: dict[str, Callable[[], None]] = {
    "packing": lambda: None,
    "grouped attention": _put(attention, "attend", _masked_attention),
    "one function for LoRA": _put(lora_layer.LoRALinear, "forward", _separate_products),
    "cheap dropout": _both_bernoulli,
    "a bfloat16 base": lambda: None,
    "a flat optimizer": _put(training, "Update", lambda *a, flat=False, **k: Update(*a, **k)),
    "parts side by side": _put(autotune, "fastest", _one_after_the_other),
    "filling": _put(packing.PackedBatch, "fill", lambda batch: batch),
}
"""Name of a part → what takes it out."""
