"""Memory of training: the bytes of live tensors by kind, and resident memory beside them as a check.

    weights      parameters, their copies, and buffers          activations  made before backward, and read by it
    gradients    of what is trained, in every micro-batch       batch        token ids, positions, labels, boundaries, masks
    optimizer    its moments and step counts                    workspace    everything else; it is freed within the step

Every storage has one kind, so the kinds of a peak add up to it exactly (1 MB = 10⁶ bytes). The kind is decided when the block ends, by
how a storage was used. What recomputed layers make are activations, as in forward. Half-precision copies of trained weights that are
kept between steps (`mixed_precision.Copies`) are weights; those that autocast makes for one step are activations.
"""

import contextlib
import gc
import sys
import threading
import weakref
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.hooks import RemovableHandle

from rankwise.engine.measure.flops import flops

MB = 1e6
KINDS = ("weights", "gradients", "optimizer", "activations", "batch", "workspace")
_FORWARD, _READ = 1, 2  # first seen outside of backward; read by backward


class PeakRss:
    """Peak of this process's resident memory above its level at construction, which is before the model is loaded.

    On Linux the peak is reset at construction, so an earlier peak doesn't hide the model's. Where it can't be reset, the result is
    never below an earlier peak (of imports).
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
        self._level = _resident("VmRSS")

    @property
    def mb(self) -> float | None:
        """Peak so far in MB above the level at construction; None where the system doesn't report it."""
        peak = _resident("VmHWM")
        return None if peak is None or self._level is None else max(0, peak - self._level) / MB


def _resident(field: str) -> int | None:
    """Return a field of /proc/self/status in bytes. Without /proc, return the process's peak for any field."""
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
    """Follow the bytes of live tensors on one device: `with TensorMemory() as memory: ...; memory.peak_mb`.

    A storage counts once, however many views it has, and as long as anything holds it, autograd included. Scratch memory inside a
    kernel is no tensor and isn't counted. Operations in `MicroBatchThreads` are followed, too. Following slows small operations
    down, so time is measured in other steps.

    Args:
        device: whose memory is counted. On CUDA the total of a peak is the allocator's; memory that no tracked tensor accounts for
            is reported as workspace.
        holders: modules and optimizers whose tensors count from the start. Default: every tensor, module and optimizer alive.
    """

    def __init__(self, device: torch.device | str = "cpu", *holders: nn.Module | Optimizer) -> None:
        super().__init__()
        self.device = torch.device(device)
        self.flops = 0
        """Floating-point operations of matrix products so far."""
        self._holders = holders
        self._live: dict[
            int, tuple[int, weakref.ref[Any]]
        ] = {}  # address → number, and a reference that reports when it is freed
        self._sizes: list[int] = []  # by number
        self._flags = bytearray()
        self._labels: dict[int, str] = {}
        self._number, self._change = array("q"), array("q")  # one entry an event: a storage is made or freed
        self._begun = 0
        self._total = 0
        self._peak = 0
        self._allocated = 0
        self._hooks: list[RemovableHandle] = []
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        holders: Iterable[Any] = self._holders
        if not self._holders:
            alive = [(thing, type(thing)) for thing in gc.get_objects()]
            # isinstance would ask lazy proxies for their class, which imports modules
            holders = [thing for thing, kind in alive if issubclass(kind, nn.Module | Optimizer)]
            for tensor in tensors_in(thing for thing, kind in alive if issubclass(kind, Tensor)):
                self._follow(tensor)
        for parameter in dict.fromkeys(p for h in holders for p in self._held(h)):
            self._hooks.append(parameter.register_hook(partial(self.label, "gradients")))
        self._optimizers = weakref.WeakSet(h for h in holders if isinstance(h, Optimizer))
        self._begun, self._peak = max(0, len(self._number) - 1), self._total
        if self.device.type == "cuda":
            _reset_allocated_peak(self.device)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self.device.type == "cuda":
            self._allocated = torch.cuda.max_memory_allocated(self.device)
        for hook in self._hooks:
            hook.remove()
        for optimizer in self._optimizers:  # the first step makes the state
            self.label("optimizer", list(optimizer.state.values()))
        self._hooks, self._holders, self._live = [], (), {}

    def _held(self, holder: nn.Module | Optimizer) -> Sequence[Tensor]:
        """Label the tensors of a module or optimizer, and return those that will have gradients."""
        if isinstance(holder, Optimizer):
            trained = [p for group in holder.param_groups for p in group["params"]]
            self.label("optimizer", list(holder.state.values()))
        else:
            trained = [p for p in holder.parameters() if p.requires_grad]
            self.label("weights", list(holder.parameters()), list(holder.buffers()))
        self.label("weights", trained)
        self.label("gradients", [p.grad for p in trained if p.grad is not None])
        return trained

    def label(self, kind: str, *things: Any) -> None:
        """Set the kind of tensors. A kind that was set before stays.

        Args:
            kind: one of `KINDS`.
            things: tensors, or collections and dataclasses that contain some.
        """
        with self._lock:
            for tensor in tensors_in(things):
                number = self._follow(tensor)
                if number is not None:
                    self._labels.setdefault(number, kind)

    @property
    def peak_mb(self) -> float:
        """The largest total in MB since the block began."""
        if self.device.type == "cuda":
            return (self._allocated or torch.cuda.max_memory_allocated(self.device)) / MB
        return self._peak / MB

    @property
    def live_mb(self) -> float:
        """The total in MB now."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) / MB
        return self._total / MB

    @property
    def peak(self) -> dict[str, int]:
        """Bytes by kind when the total was largest, which they add up to."""
        levels = self.trace()[self._begun :]
        kinds = levels[levels.sum(axis=1).argmax()].tolist() if len(levels) else [0] * len(KINDS)
        found: dict[str, int] = dict(zip(KINDS, kinds, strict=True))
        found["workspace"] += max(0, self._allocated - sum(kinds))  # on CUDA
        return found

    def trace(self) -> Int64[np.ndarray, "events kinds"]:
        """Return the bytes by kind after each storage that was made or freed, from the start of the block."""
        with self._lock:
            numbers, changes = np.array(self._number), np.array(self._change)
            kinds = np.array([KINDS.index(self._kind(n)) for n in range(len(self._sizes))], dtype=np.int64)
        levels = np.zeros((len(numbers), len(KINDS)), dtype=np.int64)
        if len(numbers):
            levels[np.arange(len(numbers)), kinds[numbers]] = changes
        return levels.cumsum(axis=0)

    @property
    def events(self) -> int:
        """Rows of the trace so far."""
        return len(self._number)

    def _kind(self, number: int) -> str:
        kept = "activations" if self._flags[number] == _FORWARD | _READ else "workspace"
        return self._labels.get(number, kept)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # A backward pass of this thread has a task id (as in `torch.utils.module_tracker`).
        backward = torch._C._current_graph_task_id() != -1 and not getattr(_recomputing, "now", False)
        with self._lock:
            for tensor in tensors_in((*args, *kwargs.values())):
                number = self._follow(tensor, backward)
                if backward and number is not None:
                    self._flags[number] |= _READ
            if func is not torch.ops.prim.device.default:  # very frequent for tensors without values
                self.flops += flops(func, args, kwargs, result)
                for tensor in tensors_in((result,)):
                    self._follow(tensor, backward)
        return result

    def _follow(self, tensor: Tensor, backward: bool = False) -> int | None:
        """Return the number of a tensor's storage, a new one for a new storage; None on another device."""
        # A storage object is unique to its memory while anything holds it.
        storage = tensor.untyped_storage()
        address = storage._cdata
        known = self._live.get(address)
        if known is not None:
            return known[0]
        device = tensor.device
        if device.type != self.device.type or self.device.index not in (None, device.index):
            return None
        size = storage.nbytes()
        if not isinstance(size, int):  # a compiler's symbol, which holds no memory
            return None
        number = len(self._sizes)
        self._live[address] = number, weakref.ref(storage, partial(self._forget, address))
        self._sizes.append(size)
        self._flags.append(0 if backward else _FORWARD)
        self._event(number, self._sizes[number])
        return number

    def resized(self, kind: str, tensor: Tensor) -> None:
        """Follow a change of the size of a tensor's storage, and set its kind."""
        with self._lock:
            number = self._follow(tensor)
            if number is not None:
                self._labels.setdefault(number, kind)
                change = tensor.untyped_storage().nbytes() - self._sizes[number]
                self._sizes[number] += change
                self._event(number, change)

    def _forget(self, address: int, reference: weakref.ref[Any]) -> None:
        with self._lock:
            known = self._live.get(address)
            if known is not None and known[1] is reference:
                del self._live[address]
                self._event(known[0], -self._sizes[known[0]])

    def _event(self, number: int, change: int) -> None:
        self._number.append(number)
        self._change.append(change)
        self._total += change
        self._peak = max(self._peak, self._total)


_recomputing = threading.local()


@contextlib.contextmanager
def recomputed() -> Iterator[None]:
    """Count tensors made in a `with` block as activations, also in backward: for layers that run again there."""
    before = getattr(_recomputing, "now", False)
    _recomputing.now = True
    try:
        yield
    finally:
        _recomputing.now = before


def label(kind: str, *things: Any) -> None:
    """Set the kind of tensors in every `TensorMemory` that is active in this thread, if any."""
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, TensorMemory):
            mode.label(kind, *things)


def resized(kind: str, tensor: Tensor) -> None:
    """Tell every `TensorMemory` that is active in this thread that a tensor's storage has another size, and its kind."""
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, TensorMemory):
            mode.resized(kind, tensor)


def megabytes(peak: Mapping[str, int]) -> dict[str, float]:
    """Return a peak as it is stored: `total` first, then each kind, in MB to the byte."""
    return {"total": sum(peak.values()) / MB} | {kind: size / MB for kind, size in peak.items()}


def tensors_in(things: Any) -> list[Tensor]:
    """Return every tensor in nested collections and dataclasses; of a sparse tensor its indices and values."""
    found: list[Tensor] = []
    for thing in things:
        if isinstance(thing, Tensor):
            if isinstance(thing, DTensor):  # its own storage is none
                found.append(thing._local_tensor)
            elif thing.layout is torch.strided:
                found.append(thing)
            elif thing.layout is torch.sparse_coo:
                found += thing._indices(), thing._values()
        elif isinstance(thing, (list, tuple)):
            found += tensors_in(thing)
        elif isinstance(thing, dict):
            found += tensors_in(thing.values())
        elif hasattr(thing, "__dataclass_fields__"):
            found += tensors_in(vars(thing).values())
    return found


_allocated_before: dict[int, int] = {}


def _reset_allocated_peak(device: torch.device) -> None:
    index = torch.cuda.current_device() if device.index is None else device.index
    _allocated_before[index] = max(_allocated_before.get(index, 0), torch.cuda.max_memory_allocated(device))
    torch.cuda.reset_peak_memory_stats(device)


def allocated_peak_mb(device: torch.device) -> float | None:
    """Return the CUDA allocator's peak in this process in MB, also where `TensorMemory` reset it; None on other devices."""
    if device.type != "cuda":
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    return max(_allocated_before.get(index, 0), torch.cuda.max_memory_allocated(device)) / MB
