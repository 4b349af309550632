"""Several processes that train one model together: `torchrun --nproc-per-node N -m rankwise train …`. All communication is here.

    batch of the single process ─► its share ─► forward, backward ─► gradients, statistics, loss ┐
                                                                                                  ├─ one flat buffer, added up once a step
    every other process, with the same weights ─► … ──────────────────────────────────────────────┘
                                                  │
                                                  └─► the same sums ─► the same optimizer step, the same rank decisions

Every process has the whole model. Rows that are only evaluated are shared out, too, and their logits are added up. The first process
alone writes files; the others follow. A digest shows that all have the same numbers: before the first step, at each rank decision, and
after the last step.
"""

import hashlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous
from torch.utils._python_dispatch import _disable_current_modes

from rankwise import hardware
from rankwise.errors import ProcessLost, RankwiseError

MEETING = timedelta(minutes=5)
"""The processes wait for each other this long, when they start."""
SILENCE = timedelta(minutes=10)
"""On CPUs a process waits this long for the others' gradients, and then takes them for lost: a torn network closes no connection.
NCCL has a watch of its own."""
ANSWER_SECONDS = 20.0
"""A process waits this long for leave to report an error, and then takes it."""
SAID = "rankwise/said"
"""Key of the store that counts the processes that had an error to report."""

LOST = "Another process of this training ended or can't be reached, so this one ended, too."

Item = TypeVar("Item")


class Processes:
    """The processes of a training: here a single one, which sends nothing.

    Attributes:
        number: of this process, from 0.
        count: of all.
        bytes_added_up, additions: size of all gradients and statistics that were added up so far, and how often that was.
        bytes_gathered: size of all weights that were gathered in training so far, where processes share them out.
        seconds: that adding them up took, waiting for the others included.
        buffer: memory in which they travel, kept between steps; None before the first.
        asked_to_end: says whether this process was asked to end.
    """

    def __init__(self, number: int = 0, count: int = 1) -> None:
        self.number, self.count = number, count
        self.bytes_added_up = self.additions = self.bytes_gathered = 0
        self.seconds = 0.0
        self.buffer: Tensor | None = None
        self.asked_to_end: Callable[[], bool] = lambda: False

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.number == 0

    @property
    def streams(self) -> tuple[int, ...]:
        """Counters that give each process random numbers of its own; the first draws those of a single process."""
        return () if self.first else (self.number,)

    @property
    def ends(self) -> bool:
        """Whether the training ends after this step, because a process was asked to end; the same in all."""
        return self.asked_to_end()

    @property
    def bytes_sent(self) -> int:
        """Bytes that each process sends a step, on average, in a ring: each part of the buffer twice, of gathered weights once."""
        whole = (2 * self.bytes_added_up + self.bytes_gathered) / max(1, self.additions)
        return round((self.count - 1) / self.count * whole)

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's items of a list that all have: every `count`-th."""
        return items[self.number :: self.count]

    def of_first(self, value: Item) -> Item:
        """Return the first process's value in all."""
        return value

    def most(self, number: int) -> int:
        """Return the largest of the processes' numbers, in all."""
        return max(self.of_all(number))

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Have the first process go through a block of code, then the others: they find what it downloaded or cached."""
        if not self.first:
            self.of_first(None)
        yield
        if self.first:
            self.of_first(None)

    def of_all(self, value: Item) -> list[Item]:
        """Return every process's value in all, in order."""
        return [value]

    def add_up(self, holders: Sequence[Tensor], loss: float) -> float:
        """Add up, over the processes, the gradients that tensors hold in `.grad`, in place; and the loss, which is returned.

        A tensor without a gradient in any process stays without one.
        """
        return loss

    def add_number(self, number: Tensor) -> Tensor:
        """Return the sum of the processes' numbers [], in all."""
        return number

    def add_arrays(self, array: np.ndarray | None) -> np.ndarray:
        """Return the sum of the processes' arrays [same shape]; a process without one has None.

        Raises:
            ValueError: no process has one.
        """
        if array is None:
            raise ValueError("nothing to add up")
        return array

    def check_same(self, what: str, tensors: Iterable[Tensor], text: str = "") -> None:
        """Check that all processes have the same bits in some tensors, and the same text.

        Args:
            what: they are, for the error.
            tensors: in the same order everywhere.
            text: compared with them.

        Raises:
            RankwiseError: they differ.
        """


ONE = Processes()
"""A single process."""


class Group(Processes):
    """Several processes, connected by torch.distributed.

    Args:
        number: of this process, from 0.
        count: of all.
    """

    def __init__(self, number: int, count: int) -> None:
        super().__init__(number, count)
        self._ends = False

    @property
    def ends(self) -> bool:
        return self._ends

    def of_first(self, value: Item) -> Item:
        values: list[Any] = [value if self.first else None]
        with _connected():
            distributed.broadcast_object_list(values, src=0)
        return values[0]

    def of_all(self, value: Item) -> list[Item]:
        values: list[Any] = [None] * self.count
        with _connected():
            distributed.all_gather_object(values, value)
        return values

    @torch.no_grad()
    def add_up(self, holders: Sequence[Tensor], loss: float) -> float:
        with _disable_current_modes():  # what follows tensors and operations has no use for messages
            begun = time.perf_counter()
            loss = self._add_up(holders, loss)
            self.seconds += time.perf_counter() - begun
            return loss

    def _add_up(self, holders: Sequence[Tensor], loss: float) -> float:
        head = [loss, float(self.asked_to_end()), *(float(h.grad is not None) for h in holders)]
        flat = self._allocate(holders)
        sections = flat.split([len(head), *(h.numel() for h in holders)])
        sections[0].copy_(torch.tensor(head, dtype=flat.dtype))
        for section, holder in zip(sections[1:], holders, strict=True):
            if holder.grad is None:
                section.zero_()
            else:
                section.copy_(holder.grad.reshape(-1))
        with _connected():
            if flat.device.type == "cpu":
                cast(Any, distributed.all_reduce(flat, async_op=True)).wait(SILENCE)
            else:
                distributed.all_reduce(flat)
        loss, ends, *there = sections[0].tolist()
        for section, holder, is_there in zip(sections[1:], holders, there, strict=True):
            if not is_there:
                continue
            if holder.grad is None:
                holder.grad = torch.empty_like(holder, memory_format=torch.contiguous_format)
            holder.grad.copy_(section.view(holder.shape))
        self._ends = bool(ends)
        return loss

    def _allocate(self, holders: Sequence[Tensor]) -> Tensor:
        """Return memory for the loss, the wish to end, and of each holder its gradient and whether it has one; count it."""
        dtype = torch.float32
        for holder in holders:
            dtype = torch.promote_types(dtype, holder.dtype)
        size = 2 + sum(1 + h.numel() for h in holders)
        if self.buffer is None or len(self.buffer) != size or self.buffer.dtype != dtype:
            self.buffer = torch.empty(size, dtype=dtype, device=holders[0].device)
        self.bytes_added_up += self.buffer.nbytes
        self.additions += 1
        return self.buffer

    def add_number(self, number: Tensor) -> Tensor:
        with _disable_current_modes(), _connected():
            distributed.all_reduce(number)
        return number

    def add_arrays(self, array: np.ndarray | None) -> np.ndarray:
        found = self.of_all(None if array is None else (array.shape, array.dtype.str))
        shape, dtype = next(filter(None, found))
        whole = torch.from_numpy(np.zeros(shape, dtype) if array is None else np.ascontiguousarray(array))
        with _connected():
            distributed.all_reduce(whole)
        return whole.numpy()

    def check_same(self, what: str, tensors: Iterable[Tensor], text: str = "") -> None:
        digests = self.of_all(digest(tensors, text))
        differ = [number for number, other in enumerate(digests) if other != digests[0]]
        if differ:
            raise RankwiseError(
                f"{what} of process {differ[0]} differ from those of process 0, which are to be the same. Start all {self.count} on "
                "machines of the same kind, with the same packages, and with the model, the rows and `out=` in folders that all of "
                "them see."
            )


def digest(tensors: Iterable[Tensor], text: str = "") -> str:
    """Return a name for the shapes, number types and bits of some tensors, and a text: others have another."""
    found = hashlib.blake2b(text.encode(), digest_size=16)
    for tensor in tensors:
        found.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@contextmanager
def _connected() -> Iterator[None]:
    """Raise `ProcessLost` where another process doesn't answer any more."""
    try:
        yield
    except (RuntimeError, pickle.UnpicklingError) as error:  # of the connection
        raise ProcessLost(LOST) from error


@contextmanager
def answered() -> Iterator[None]:
    """Raise `ProcessLost` where an operation among others that uses the connection finds it closed."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo/" in str(error):
            raise ProcessLost(LOST) from error
        raise


# ── Meeting ───────────────────────────────────────────────────────────────────────────────────


@contextmanager
def joined() -> Iterator[Processes]:
    """Have the processes that were started together meet, for a block of code; yield them. A process started alone is `ONE`.

    Raises:
        RankwiseError: they don't meet.
    """
    if hardware.processes() == 1:
        yield ONE
        return
    try:
        store, number, count = _meeting()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=store, rank=number, world_size=count)
    except (RuntimeError, ValueError) as error:
        raise RankwiseError(
            f"The {hardware.processes()} processes of this training don't meet at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}: {' '.join(str(error).split()):.200}."
        ) from error
    yield Group(number, count)
    distributed.destroy_process_group()


@cache
def _meeting() -> tuple[Any, int, int]:
    """Return the store that all processes share, the number of this one, and how many there are.

    A job that torchelastic starts again has the store of the job before: what that one left there is under another name.
    """
    store, number, count = next(iter(rendezvous("env://", timeout=MEETING)))
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return distributed.PrefixStore(f"rankwise/start {start}", store), number, count


def is_first() -> bool:
    """Return whether this is the first of the processes that were started together."""
    return os.environ.get("RANK", "0") == "0"


def speaks() -> bool:
    """Return whether this process is the first of all to report an error; the others then end without a word."""
    answers: list[bool] = []

    def ask() -> None:
        with suppress(RuntimeError, ValueError):  # nobody is there to ask
            answers.append(_meeting()[0].add(SAID, 1) == 1)

    asks = threading.Thread(target=ask, daemon=True)
    asks.start()
    asks.join(ANSWER_SECONDS)  # behind a torn network there is no answer
    return answers != [False]
