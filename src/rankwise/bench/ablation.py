"""What each optimization of the engine saves: our LoRA with one optimization replaced by what PyTorch or PEFT would do.

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
from rankwise.engine import attention, autotune, dropout, packed_mode, packing, training
from rankwise.engine.execution import Engine
from rankwise.engine.layout import Layout
from rankwise.engine.optim import Update
from rankwise.lora import layer as lora_layer


def build_runner(config: BenchConfig, *, without: str) -> ours.OurRunner:
    """Build our LoRA without one optimization. The engine stays changed for the rest of this process.

    Args:
        config: resolved.
        without: an entry of `contenders.ABLATIONS`.
    """
    if without == "packing":
        return ours.build_runner(config, method="lora", padding="longest")
    if without == "bfloat16 base":
        runner = ours.build_runner(replace(config, dtype="float32"), method="lora")
        autocast = None if config.dtype == "float32" else getattr(torch, config.dtype)
        return replace(runner, compute=replace(runner.compute, autocast=autocast))
    DISABLE[without]()
    return ours.build_runner(config, method="lora")


def _put(module: Any, name: str, value: Any) -> Callable[[], None]:
    return partial(setattr, module, name, value)


def _masked_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, *, scaling: float, causal: bool = False,
    window: int | None = None, p: float = 0.0, stream: Any = (),
) -> Tensor:  # fmt: skip
    """Attend with PyTorch's fused attention over all tokens of the batch, with the rows' boundaries in a mask."""
    lengths = torch.from_numpy(np.append(layout.lengths, layout.filler) if layout.filler else layout.lengths)
    row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    mask = row[:, None] == row
    out = F.scaled_dot_product_attention(query, key, value, mask[None, None], p, scale=scaling)
    return out.transpose(1, 2)


def _separate_products(layer: lora_layer.LoRALinear, x: Tensor) -> Tensor:
    """Compute W0 and the adapter as separate autograd operations, as PEFT does."""
    z = F.linear(layer.dropout(x).to(layer.lora_A.dtype), layer.lora_A)
    return F.linear(x, layer.weight, layer.bias) + (layer.scaling * F.linear(z, layer.lora_B)).to(x.dtype)


def _bernoulli(key: Any, start: int, shape: Any, p: float, dtype: torch.dtype) -> Tensor:
    """Draw one random number for each element with PyTorch's own generator."""
    generator = torch.Generator().manual_seed(hash((key, start)) % 2**63)
    return torch.empty(shape, dtype=dtype).bernoulli_(1.0 - p, generator=generator)


def _use_bernoulli() -> None:
    dropout.keep_mask = attention.keep_mask = _bernoulli


def _one_micro_batch(*arguments: Any, **more: Any) -> Engine:
    return Engine()


DISABLE: dict[str, Callable[[], None]] = {
    "grouped attention": _put(packed_mode, "attend", _masked_attention),
    "fused LoRA function": _put(lora_layer.LoRALinear, "forward", _separate_products),
    "fast dropout masks": _use_bernoulli,
    "flat optimizer buffer": _put(training, "Update", lambda *a, flat=False, **k: Update(*a, **k)),
    "parallel micro-batches": _put(autotune, "fastest", _one_micro_batch),
    "bucketed token counts": _put(packing.PackedBatch, "fill", lambda batch: batch),
}
"""Name of an optimization → a function that takes it out. Packing and the bfloat16 base are settings of the runner instead."""
