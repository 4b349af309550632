"""Tensors that have shapes and no values: a training step on them takes no memory and no arithmetic.

This is PyTorch's `FakeTensorMode` with what a training step needs besides: scalars that a step reads, and faster paths for
frequent operations.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

from rankwise.engine import attention, dropout

_aten = torch.ops.aten
VIEWS = {_aten.view.default, _aten.slice.Tensor, _aten.select.int, _aten.transpose.int, _aten.t.default}
"""The most frequent operations that return the memory of their first argument in another shape."""


class NoValues(FakeTensorMode):
    """Tensors that have shapes and no values.

    A number that the step reads (a loss, a norm) is 1. A mask of tokens, used to find gradients or to pool, selects all of them. Numbers
    that a model compares (of end-of-text tokens a row) are all alike. Results of in-place operations and of `VIEWS` are returned directly,
    which saves half of the time.
    """

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        if func is _aten.index.Tensor and [getattr(i, "dtype", None) for i in args[1]] == [torch.bool]:
            (mask,) = args[1]
            with self:
                args = args[0].flatten(0, mask.ndim - 1), [torch.empty(mask.numel(), dtype=torch.int64)]
        elif func is _aten.unique_consecutive.default:
            return tuple(
                args[0].new_empty(1, dtype=dtype) for dtype in (args[0].dtype, torch.int64, torch.int64)
            )
        elif _returns_what_it_writes(func):
            into = kwargs.get("out", args[0] if args else None)
            if isinstance(into, FakeTensor) and into.layout is torch.strided and into.numel() > 0:
                return into
        elif func in VIEWS and isinstance(args[0], FakeTensor):
            with in_kernel_invocation_manager(self):
                view = func(*args, **kwargs)
            return FakeTensor(self, view, args[0].fake_device)
        return super().dispatch(func, types, args, kwargs)


@cache
def _returns_what_it_writes(operation: Any) -> bool:
    """Say whether an operation returns the one tensor that it writes into, with its shape unchanged."""
    returned = operation._schema.returns
    alias = returned[0].alias_info if len(returned) == 1 else None
    return alias is not None and alias.is_write and torch.Tag.inplace_view not in operation.tags


@contextmanager
def shapes_only(fake: FakeTensorMode) -> Iterator[None]:
    """Make all tensors in this block fake, including those made from NumPy arrays."""
    from_numpy, lanes, blocks = torch.from_numpy, dropout._lanes, attention._blocks
    truncated = nn.init._no_grad_trunc_normal_
    with torch.random.fork_rng(devices=[]), fake:
        torch.from_numpy = lambda array: fake.from_tensor(from_numpy(array))
        dropout._lanes, attention._blocks = _undrawn, _one_block
        nn.init._no_grad_trunc_normal_ = lambda tensor, *_, **__: tensor  # draws until every value fits
        try:
            yield
        finally:
            torch.from_numpy, dropout._lanes, attention._blocks = from_numpy, lanes, blocks
            nn.init._no_grad_trunc_normal_ = truncated


def _undrawn(key: Any, start: int, n: int) -> torch.Tensor:
    """Replace `dropout._lanes`: the same memory, but no number is drawn, because large batches take millions."""
    skip = start % 4
    words = torch.empty((skip + n + 3) // 4, dtype=torch.int64)
    return words.view(torch.int16)[skip : skip + n]


def _one_block(scores: torch.Tensor, most: int) -> list[torch.Tensor]:
    """Replace `attention._blocks`: blocks are computed in turn in the same memory, and large batches have thousands."""
    return [scores[:most]]
