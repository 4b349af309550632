"""What a block has the device do: the operations it starts, and the memory that these read and write.

    x·Wᵀ + b ─► one operation, 2·n·d_in·d_out of arithmetic, x, W and b read, n·d_out numbers written

Every operation that PyTorch dispatches is seen, in forward, backward and the optimizer. On a GPU each of them starts a kernel, mostly one.
Views and empty tensors start none. Traffic is what would be read and written if nothing stayed in a cache from one operation to the next.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rankwise.engine.measure.flops import flops
from rankwise.engine.measure.memory import tensors_in

_aten, _prim = torch.ops.aten, torch.ops.prim
FREE = {
    _aten.empty,
    _aten.empty_like,
    _aten.empty_strided,
    _aten.new_empty,
    _aten.new_empty_strided,
    _aten.resize_,
    _aten.set_,
    _aten.detach_,
    _aten.lift_fresh,
    _prim.device,
    torch.ops.profiler._record_function_enter_new,
    torch.ops.profiler._record_function_exit,
}
"""Operations that start nothing on the device, besides views."""
LOOK_UPS = {_aten.embedding, _aten.index_select, _aten.index, _aten.gather}
"""They read as many rows of their first argument as they return."""
ROW_WRITES = {_aten.index_put_, _aten.index_add_, _aten.index_copy_, _aten.scatter_, _aten.scatter_add_}
"""They write as many rows of their first argument as they are given; adding reads them before."""
OVERWRITES = {
    *(_aten.copy_, _aten.fill_, _aten.zero_, _aten._foreach_copy_, _aten._foreach_zero_),
    *(_aten.bernoulli_, _aten.normal_, _aten.uniform_, _aten.random_, _aten.exponential_),
}
"""They don't read what they write into."""
READS_OF_NUMBERS = {_aten._local_scalar_dense, _aten.equal}
"""They return a number of Python's, for which a GPU is waited for."""


class Operations(TorchDispatchMode):
    """Count operations: `with Operations() as done: ...; done.started`. Those in `MicroBatchThreads` count, too.

    Attributes:
        names: operation → how often it was started.
        products: those of them that are matrix products, attention included.
        flops: their arithmetic; a multiplication and an addition are two.
        traffic: bytes read and written by all operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.products = self.flops = self.traffic = 0
        self._lock = threading.Lock()

    @property
    def started(self) -> int:
        """Operations started so far."""
        return sum(self.names.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.overloadpacket in FREE:
            return result
        given, writes = tensors_in((args, kwargs)), _written(func)
        there = {tensor.untyped_storage()._cdata for tensor in given}
        made = [tensor for tensor in tensors_in((result,)) if tensor.untyped_storage()._cdata not in there]
        if not made and not writes and func.overloadpacket not in READS_OF_NUMBERS:
            return result  # a view
        arithmetic = flops(func, args, kwargs, result)
        with self._lock:
            self.names[str(func.overloadpacket)] += 1
            self.products += arithmetic > 0
            self.flops += arithmetic
            self.traffic += _bytes(func, args, kwargs, given, made)
        return result


def _bytes(func: Any, args: Any, kwargs: Any, given: list[Tensor], made: list[Tensor]) -> int:
    """Return the bytes that an operation reads and writes.

    Args:
        func, args, kwargs: the operation and what it is called with.
        given: the tensors among them.
        made: those that it returns in memory of their own.
    """
    kind, written = func.overloadpacket, _written(func)
    if kind in (_aten._fused_adamw_, _aten._fused_adam_) and kwargs.get("grad_scale") is None:
        written = written - {"grads"}  # written only where they are scaled
    into = [tensor for name, tensor in _named(func, args, kwargs) if name in written]
    if kind in LOOK_UPS:
        rows = made or into
        return 2 * sum(map(_size, rows)) + sum(_size(t) for t in given[1:] if not any(t is r for r in rows))
    if kind in ROW_WRITES:
        adds = kind in (_aten.index_add_, _aten.scatter_add_) or any(one is True for one in args[3:])
        rows = max((_size(t) for t in given[1:] if t.dtype == given[0].dtype), default=0)
        return sum(map(_size, given[1:])) + rows * (1 + adds)
    if kwargs.get("beta") == 0:  # of a product that is added to its first argument
        given = given[1:]
    called = str(kind).removeprefix("aten.")
    if called.startswith("new_") or called.endswith("_like"):  # it takes a shape alone
        given = []
    unread = [tensor for name, tensor in _named(func, args, kwargs) if name in _overwritten(func)]
    return sum(map(_size, [*given, *made, *into])) - sum(map(_size, unread))


def _named(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a call with the name of the argument that it is, or is in."""
    names = [argument.name for argument in func._schema.arguments]
    for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
        yield from ((name, tensor) for tensor in tensors_in((value,)))


@cache
def _written(func: Any) -> frozenset[str]:
    """Return the names of the arguments that an operation writes into."""
    return frozenset(a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write)


@cache
def _overwritten(func: Any) -> frozenset[str]:
    """Return those of them that it doesn't read before."""
    if func.overloadpacket in OVERWRITES:
        return _written(func)
    return frozenset(a.name for a in func._schema.arguments if a.is_out)


def _size(tensor: Tensor) -> int:
    """Return the bytes of a tensor; rows that a view repeats count once."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= size if stride or not size else 1
    return numbers * tensor.element_size()
