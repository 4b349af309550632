"""Floating-point operations: the count of a dispatched operation, and the rates of this machine's matrix products and copies.

The count is PyTorch's own (`torch.utils.flop_counter`). It counts matrix products only; everything else is memory traffic.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.flop_counter import addmm_flop, flop_registry

from rankwise.files import remembered

COUNTS: dict[Any, Callable[..., int]] = {**flop_registry, torch.ops.aten.addmm_: addmm_flop}
"""Operation → its counter. PyTorch has none for the in-place form that a LoRA layer uses."""


_known: dict[Any, int] = {}


def flops(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Return the floating-point operations of one dispatched operation; a multiplication and an addition are two."""
    count = COUNTS.get(func._overloadpacket)
    if count is None:
        return 0
    # PyTorch's counters are slow, and products of the same shapes are frequent.
    key = func, _shapes((args, tuple(kwargs.items()), result))
    if key not in _known:
        _known[key] = cast(Any, count)(*args, **kwargs, out_val=result)
    return _known[key]


def _shapes(thing: Any) -> Any:
    """Return arguments with each tensor replaced by its shape."""
    if isinstance(thing, torch.Tensor):
        return thing.shape
    return tuple(map(_shapes, thing)) if isinstance(thing, (list, tuple)) else thing


def product_rate(device: torch.device, dtype: torch.dtype, key: str, cache: Path | None = None) -> float:
    """Return the floating-point operations a second that large square matrix products reach on this machine.

    Args:
        device, dtype: of the matrices.
        key: names machine and threads in the cache.
        cache: folder that keeps what was measured; None measures anew.
    """
    file = None if cache is None else cache / "products.json"
    n = 8192 if device.type == "cuda" else 1024  # larger on a GPU, to fill it

    def measured() -> float:
        a, b = (torch.full((n, n), 0.01, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        return 2 * n**3 / _quickest(lambda: torch.mm(a, b, out=out), device)

    return remembered(file, f"{key}, {dtype}, torch {torch.__version__}", measured)


def copy_rate(device: torch.device) -> float:
    """Return the bytes a second that a copy reads and writes on this machine; it is larger than any cache."""
    size = 2**31 if device.type == "cuda" else 2**28
    a, b = (torch.full((size,), 1, device=device, dtype=torch.uint8) for _ in range(2))
    return 2 * size / _quickest(lambda: b.copy_(a), device)


@torch.no_grad()
def _quickest(compute: Callable[[], object], device: torch.device, seconds: float = 0.3) -> float:
    """Return the shortest time of a computation that is repeated for some seconds."""
    least, begun = math.inf, time.perf_counter()
    while least == math.inf or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        compute()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        least = min(least, time.perf_counter() - started)
    return least
