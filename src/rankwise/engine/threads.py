"""Threads that compute side by side, each with its share of the cores.

A matrix product of a few hundred tokens doesn't always divide well over cores, and small operations hardly at all. Halving the batch
instead does: every operation of a step then runs on all cores at once, with nothing to wait for but the other half.
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
"""glibc's number for that setting (malloc.h, mallopt(3))."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """`count` threads, each of which gives an operation `threads` cores; one worker is the calling thread itself.

    Args:
        count: how many work side by side.
        threads: cores of each; torch's own setting where it isn't given.
    """

    def __init__(self, count: int = 1, threads: int | None = None) -> None:
        self.count, self.threads = count, threads
        if count > 1:
            _share_memory()
        self._pool = ThreadPoolExecutor(count, "rankwise", self._begin) if count > 1 else None

    def _begin(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)  # of this thread; others keep theirs

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of every item, in order, as they are done; an exception of any comes out here."""
        if self._pool is None:
            return map(function, items)
        return self._pool.map(partial(_under, _get_current_dispatch_mode_stack(), function), items)


@cache
def side_by_side(count: int, threads: int) -> Workers:
    """The same workers for everybody who asks for as many: every thread keeps buffers of the math libraries for good."""
    return Workers(count, threads)


@cache
def _share_memory() -> None:
    """Has glibc's allocator serve all threads from one heap: with one each, what one has freed is lost to the others, and a process
    grows to twice its size. Other allocators don't need it."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def _under(modes: list[TorchDispatchMode], function: Callable[[Item], Result], item: Item) -> Result:
    """Calls a function under the dispatch modes of the thread that asked for it: each thread has a stack of its own."""
    with ExitStack() as stack:
        for mode in modes:
            _push_mode(mode)
            stack.callback(_pop_mode)
        return function(item)
