"""Threads that run micro-batches side by side, each on its share of the cores.

A matrix product of a few hundred tokens often divides badly over cores, and a small operation hardly divides at all. Dividing the
batch works better: all cores are then busy in every operation, and wait only for the other micro-batches at the end of a step.
"""

import ctypes
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache, partial
from typing import TypeVar

import torch
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    _pop_mode,
    _push_mode,
)

M_ARENA_MAX = -8
"""glibc's number for the setting of that name (malloc.h, mallopt(3))."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class MicroBatchThreads:
    """`count` threads that give each operation `cores` cores. One thread alone is the calling thread itself.

    Args:
        count: threads side by side.
        cores: of each; torch's own setting where None.
    """

    def __init__(self, count: int = 1, cores: int | None = None) -> None:
        self.count, self.cores = count, cores
        if count > 1:
            _share_memory()
        self._pool = ThreadPoolExecutor(count, "rankwise", self._begin) if count > 1 else None

    def _begin(self) -> None:
        if self.cores:
            torch.set_num_threads(self.cores)  # of this thread; others keep theirs

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `function` of every item, in the items' order. An exception in a thread is raised here."""
        if self._pool is None:
            return map(function, items)
        return self._pool.map(partial(_under, _get_current_dispatch_mode_stack(), function), items)


@cache
def micro_batch_threads(count: int, cores: int) -> MicroBatchThreads:
    """Return the same threads to everyone who asks for as many, because math libraries keep buffers for each thread."""
    return MicroBatchThreads(count, cores)


@cache
def _share_memory() -> None:
    """Have glibc's allocator serve all threads from one heap; other allocators are left alone.

    With a heap for each thread, memory that one thread frees is lost to the others, and a process grows to twice its size.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def _under(modes: list[TorchDispatchMode], function: Callable[[Item], Result], item: Item) -> Result:
    """Call a function under the dispatch modes of the thread that asked for it, because each thread has its own stack."""
    with ExitStack() as stack:
        for mode in modes:
            _push_mode(mode)
            stack.callback(_pop_mode)
        return function(item)
