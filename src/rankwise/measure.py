"""Time and memory of training: rows and tokens a second, resident memory, and the bytes of live tensors.

`peak_memory_mb` is tensor bytes, the same on CPU and GPU (1 MB = 10⁶ bytes): on CUDA the allocator's own
peak, elsewhere the sum over live storages, each counted once, seen through every operation PyTorch
dispatches. `peak_rss_mb` is a check beside it.
"""

import contextlib
import gc
import statistics
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

MB = 1e6


@dataclass(frozen=True)
class Spread:
    """A median and the range it was taken over."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(statistics.median(values), min(values), max(values))


class Speed:
    """Rows and tokens per second over training steps; the clock runs from construction, or from the last
    `start`.

    Args:
        skip: first steps left out: they allocate, choose kernels and fill caches.
    """

    def __init__(self, skip: int = 0) -> None:
        self._skip = skip
        self._steps: list[tuple[float, int, int]] = []
        self._mark = time.perf_counter()

    def start(self) -> None:
        """Forgets the time since the last step; called after an evaluation or a checkpoint, which are no
        training."""
        self._mark = time.perf_counter()

    def step(self, rows: int, tokens: int) -> None:
        """Ends a step.

        Args:
            rows: sequences in the step's batch.
            tokens: their tokens, padding not counted.
        """
        now = time.perf_counter()
        if self._skip:
            self._skip -= 1
        else:
            self._steps.append((now - self._mark, rows, tokens))
        self._mark = now

    @property
    def seconds(self) -> float:
        """Time in the steps that count."""
        return sum(seconds for seconds, _, _ in self._steps)

    @property
    def rows_per_second(self) -> float | None:
        """None until a step counts."""
        return sum(rows for _, rows, _ in self._steps) / self.seconds if self._steps else None

    @property
    def tokens_per_second(self) -> float | None:
        """None until a step counts."""
        return sum(tokens for _, _, tokens in self._steps) / self.seconds if self._steps else None

    @property
    def step_seconds(self) -> Spread | None:
        """Seconds a step, over the steps that count."""
        return Spread.of([seconds for seconds, _, _ in self._steps]) if self._steps else None


class PeakRss:
    """High-water mark of this process's resident memory above its level at construction, which comes before
    the model's.

    On Linux the mark itself is reset at construction, so an earlier peak does not hide the model's. Where a
    system can't reset it, an earlier peak (imports) is the least that is reported.
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
        self._level = _resident("VmRSS")

    @property
    def mb(self) -> float | None:
        """Megabytes above the level so far; None where the system doesn't tell."""
        peak = _resident("VmHWM")
        return None if peak is None or self._level is None else max(0, peak - self._level) / MB


def _resident(field: str) -> int | None:
    """A field of /proc/self/status in bytes; elsewhere the process's peak, whichever field is asked for."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        return None
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class TensorMemory(TorchDispatchMode):
    """Follows the bytes of live tensors of one device while it is active: `with TensorMemory() as memory:
    ...; memory.peak_mb`.

    Tensors already alive (weights, optimizer moments) count from the start. A storage counts once, however
    many views it has, and for as long as anything holds it, autograd's saved tensors included. Scratch space
    inside a kernel is not a tensor and is not seen. Following every operation slows small ones down: time and
    memory are measured in separate passes. What `Workers` compute is followed too.

    Args:
        device: whose memory. On CUDA the allocator keeps the count, and nothing is slowed down.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.device = torch.device(device)
        self._live: dict[weakref.ref[Any], int] = {}
        self._lock = threading.RLock()
        self._total = 0
        self._peak = 0

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        for thing in gc.get_objects():
            if issubclass(
                type(thing), torch.Tensor
            ):  # isinstance would ask lazy proxies for their class, and so import things
                self._follow(thing)
        self._peak = self._total
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        if self.device.type != "cuda":
            super().__exit__(*error)

    @property
    def peak_mb(self) -> float:
        """The largest total since the block began."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MB
        return self._peak / MB

    @property
    def live_mb(self) -> float:
        """The total now."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) / MB
        return self._total / MB

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        with self._lock:
            for thing in tree_iter((args, kwargs, result)):
                if isinstance(thing, torch.Tensor):
                    self._follow(thing)
            self._peak = max(self._peak, self._total)
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        if tensor.device != self.device or tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        # A storage object is unique to its memory while anything holds it, and so is a weak reference to it.
        reference = weakref.ref(storage, self._forget)
        if reference not in self._live:
            self._live[reference] = storage.nbytes()
            self._total += storage.nbytes()

    def _forget(self, reference: weakref.ref[Any]) -> None:
        with self._lock:
            self._total -= self._live.pop(reference, 0)
