"""Floating-point operations: what a dispatched operation takes, and what this machine's matrix products reach.

An operation's count is PyTorch's own (`torch.utils.flop_counter`), which sees matrix products only: everything else is memory traffic.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock
from torch.utils.flop_counter import addmm_flop, flop_registry

COUNTS: dict[Any, Callable[..., int]] = {**flop_registry, torch.ops.aten.addmm_: addmm_flop}
"""Operation → what counts it; the in-place form is the one that PyTorch leaves out and a LoRA layer uses."""


_known: dict[Any, int] = {}


def flops(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Floating-point operations (a multiplication and an addition are two) of one dispatched operation."""
    count = COUNTS.get(func._overloadpacket)
    if count is None:
        return 0
    # PyTorch's counters take their time, and products of the same shapes come again and again.
    key = func, _shapes((args, tuple(kwargs.items()), result))
    if key not in _known:
        _known[key] = cast(Any, count)(*args, **kwargs, out_val=result)
    return _known[key]


def _shapes(thing: Any) -> Any:
    """Arguments with shapes in the place of tensors."""
    if isinstance(thing, torch.Tensor):
        return thing.shape
    return tuple(map(_shapes, thing)) if isinstance(thing, (list, tuple)) else thing


def product_rate(device: torch.device, dtype: torch.dtype, key: str, cache: Path | None = None) -> float:
    """Floating-point operations a second that large square matrix products reach here.

    Args:
        device, dtype: of the matrices.
        key: names machine and threads.
        cache: folder where what was measured is kept; None measures anew.
    """
    if cache is None:
        return _measured(device, dtype)
    file, key = cache / "products.json", f"{key}, {dtype}, torch {torch.__version__}"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        try:
            known: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        if key not in known:
            known[key] = _measured(device, dtype)
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(known, indent=1), encoding="utf-8")
            partial.replace(file)
    return known[key]


@torch.no_grad()
def _measured(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """The best of products of `n` × `n`, larger on a GPU, where small ones don't fill it."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.full((n, n), 0.01, device=device, dtype=dtype) for _ in range(2))
    out, best, begun = torch.empty_like(a), 0.0, time.perf_counter()
    while best == 0.0 or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - started))
    return best
