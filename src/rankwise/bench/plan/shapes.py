"""One step of training without values: the very step that would be trained, on tensors that have shapes only.

    config ─► model, adapters, optimizer ─► a step of some rows ─► storages followed by kind, as in a real run
              └──────── under FakeTensorMode: no weights, no arithmetic, no memory ────────┘

A deep model isn't gone through whole: what is live at a given moment grows with the layers in a line.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from transformers import AutoModelForSequenceClassification

from rankwise.bench import architectures
from rankwise.bench.lengths import random_rows
from rankwise.config import LoraOptions, RunConfig, TrainOptions
from rankwise.engine import attention, dropout
from rankwise.engine.batch_schedule import GivenBatches
from rankwise.engine.compute import Compute, Padding
from rankwise.engine.execution import Engine
from rankwise.engine.measure import KINDS, Speed, TensorMemory
from rankwise.engine.training import Training
from rankwise.lora import quantized
from rankwise.lora.layer import lora_layers
from rankwise.models import loading
from rankwise.rank.controller import RankController
from rankwise.runs.methods import METHODS

_aten = torch.ops.aten
VIEWS = {_aten.view.default, _aten.slice.Tensor, _aten.select.int, _aten.transpose.int, _aten.t.default}
"""The most frequent operations that return the memory of their first argument, in another shape."""


class _NoValues(FakeTensorMode):
    """Tensors that have shapes and no values.

    Where a step asks for the value of a number (losses, norms), it is 1; where it asks which tokens aren't padding, to look their gradients
    up, all are. Of most operations it is plain what they return, which saves half the time: what they wrote into, or a view.
    """

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        if func is torch.ops.aten.index.Tensor and [getattr(i, "dtype", None) for i in args[1]] == [
            torch.bool
        ]:
            (mask,) = args[1]
            with self:
                args = args[0].flatten(0, mask.ndim - 1), [torch.empty(mask.numel(), dtype=torch.int64)]
        elif _writes(func):
            into = kwargs.get("out", args[0] if args else None)
            if isinstance(into, FakeTensor) and into.layout is torch.strided and into.numel() > 0:
                return into
        elif func in VIEWS and isinstance(args[0], FakeTensor):
            with in_kernel_invocation_manager(self):
                view = func(*args, **kwargs)
            return FakeTensor(self, view, args[0].fake_device)
        return super().dispatch(func, types, args, kwargs)


@cache
def _writes(operation: Any) -> bool:
    """Whether an operation returns the one tensor that it writes into, and leaves its shape as it is."""
    returned = operation._schema.returns
    alias = returned[0].alias_info if len(returned) == 1 else None
    return alias is not None and alias.is_write and torch.Tag.inplace_view not in operation.tags


@contextmanager
def shapes_only(fake: FakeTensorMode) -> Iterator[None]:
    """In this block tensors have shapes and no values, those made of NumPy's arrays included, and take no memory."""
    from_numpy, lanes, blocks = torch.from_numpy, dropout._lanes, attention._blocks
    with torch.random.fork_rng(devices=[]), fake:
        torch.from_numpy = lambda array: fake.from_tensor(from_numpy(array))
        dropout._lanes, attention._blocks = _undrawn, _one_block
        try:
            yield
        finally:
            torch.from_numpy, dropout._lanes, attention._blocks = from_numpy, lanes, blocks


def _undrawn(key: Any, start: int, n: int) -> torch.Tensor:
    """The lanes of `dropout._lanes`, in the same memory, without a number drawn: large batches take millions."""
    skip = start % 4
    words = torch.empty((skip + n + 3) // 4, dtype=torch.int64)
    return words.view(torch.int16)[skip : skip + n]


def _one_block(scores: torch.Tensor, most: int) -> list[torch.Tensor]:
    """The first of `attention._blocks`, which are computed in turn in the same memory: large batches have thousands."""
    return [scores[:most]]


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        architecture: a Transformers config.
        method: `full`, `lora` or `adaptive`.
        rank: r of every adapter; with `adaptive` at most what its layer can have.
        dtype: of frozen weights and of products.
        padding: `packed` or `longest`.
        workers: parts of a batch side by side.
        targets: layers that get an adapter; the family's query and value by default.
        base_bits: frozen linear layers in 8 or 4 bits; full fine-tuning has none.
    """

    architecture: Any
    method: str
    rank: int
    dtype: torch.dtype
    padding: Padding
    workers: int = 1
    targets: tuple[str, ...] = ()
    base_bits: int | None = None


class Shapes:
    """A training without values: `peak` of any batch. What is followed is a step of `Training`, the very code of a run.

    Layers are alike, so what is live at a given moment grows with their number in a line. Of a deep model two shallow ones are run, and
    the line through each of the moments in which a step can peak is followed to the model's own depth.

    Args:
        setting: what is trained.
        depths: layers of the models that are run. Default: 3 and 4 where there are more and all are alike.
    """

    def __init__(self, setting: Setting, depths: tuple[int, ...] | None = None) -> None:
        self.setting, self._fake = setting, _NoValues()
        self._passes: dict[tuple[int, ...], np.ndarray] = {}
        self.layers = int(setting.architecture.num_hidden_layers)
        alike = len(set(getattr(setting.architecture, "layer_types", None) or ())) < 2
        self.depths = depths or ((3, 4) if self.layers > 4 and alike else (self.layers,))
        with shapes_only(self._fake):
            self._trainings = [
                prepared(replace(setting, architecture=reduced(setting.architecture, n))) for n in self.depths
            ]
            for training in self._trainings:
                update = training.update  # whose first step makes what is kept between steps
                update.add([torch.zeros_like(parameter) for parameter in update.parameters])
                update.step(0.0)

    def peak(self, lengths: np.ndarray, *, recompute: bool = False) -> dict[str, int]:
        """Bytes by kind at the peak of a step that isn't the first.

        Parts side by side are taken to reach their own peaks at the same moment, which is the most they can take together.

        Args:
            lengths: tokens of each row of the batch.
            recompute: layers run again in backward (`--memory lean`).
        """
        return largest(self.moments(lengths, recompute))

    def moments(self, lengths: np.ndarray, recompute: bool) -> np.ndarray:
        """Bytes by kind at the moments in which a step can peak, [moments, kinds]."""
        return self._followed(lambda training: self._moments(training, lengths, recompute))

    def forward(self, lengths: np.ndarray) -> np.ndarray:
        """Bytes by kind at the peak of a pass over rows that keeps nothing for backward, as ranks are decided by, [1, kinds].

        Args:
            lengths: tokens of each row.
        """
        rows = tuple(lengths.tolist())
        if rows not in self._passes:  # asked for in each memory mode, which makes no difference to it
            self._passes[rows] = self._followed(lambda training: self._forward(training, lengths))
        return self._passes[rows]

    def _followed(self, moments: Callable[[Training], np.ndarray]) -> np.ndarray:
        """Moments of the models that are run, followed to all layers."""
        first, *more = map(moments, self._trainings)
        return first + (self.layers - self.depths[0]) * (more[0] - first) if more else first

    def _forward(self, training: Training, lengths: np.ndarray) -> np.ndarray:
        compute = replace(training.compute, engine=Engine())
        with shapes_only(self._fake):
            rows = random_rows(lengths, self.setting.architecture, np.random.default_rng(0))
            with training.memory() as memory, torch.no_grad(), compute.running(training.model.eval()):
                begun = memory.events - 1
                for batch in compute.batches(training.model, rows, np.arange(len(lengths))):
                    compute.logits(training.model, batch)
        trace = memory.trace()[begun:]
        top = trace[trace.sum(axis=1).argmax()]
        return (trace[0] + self.setting.workers * (top - trace[0]))[None]

    def _moments(self, training: Training, lengths: np.ndarray, recompute: bool) -> np.ndarray:
        training.compute = replace(training.compute, engine=Engine(recompute=recompute))
        training.step_number, training.batches = 0, GivenBatches([np.arange(len(lengths))], sys.maxsize)
        with shapes_only(self._fake):
            training.rows = random_rows(lengths, self.setting.architecture, np.random.default_rng(0))
            memory = training.memory()
            training.speed = marks = _Marks(memory)
            with memory, training.compute.running(training.model):
                training.step()
        return moments(memory.trace(), marks.begun, marks.ended)


class _Marks(Speed):
    """Notes where in a memory's trace the shares of a step lie."""

    def __init__(self, memory: TensorMemory) -> None:
        super().__init__()
        self.memory = memory
        self.begun: dict[str, list[int]] = {}
        self.ended: dict[str, list[int]] = {}

    @contextmanager
    def share(self, name: str, side_by_side: int = 1) -> Iterator[None]:
        self.begun.setdefault(name, []).append(self.memory.events)
        yield
        self.ended.setdefault(name, []).append(self.memory.events)


def moments(trace: np.ndarray, begun: dict[str, list[int]], ended: dict[str, list[int]]) -> np.ndarray:
    """What a step takes at most in forward, in the first and second half of backward, and outside of them, by kind.

    Along the layers memory rises or falls in a line, so its peak is at one end: one of these moments. Parts, which were run one after the
    other, are put on top of each other in each.

    Args:
        trace: bytes by kind after each event.
        begun, ended: the events at which shares of the step began and ended, one entry a part.
    """

    def top(first: int, last: int) -> np.ndarray:
        some = trace[first - 1 : max(first, last)]
        return some[some.sum(axis=1).argmax()]

    level = trace[begun["forward"][0] - 1]
    stages = np.tile(level, (3, 1))
    parts = zip(begun["forward"], begun["backward"], ended["backward"], strict=True)
    for forward, backward, end in parts:
        middle = (backward + end) // 2
        each = [top(forward, backward), top(backward, middle), top(middle, end)]
        stages += np.array(each) - trace[forward - 1]
    return np.vstack([stages, top(ended["backward"][-1], len(trace))])


def largest(moments: np.ndarray) -> dict[str, int]:
    """Bytes by kind at the moment with most."""
    return dict(zip(KINDS, moments[moments.sum(axis=1).argmax()].round().astype(int).tolist(), strict=True))


def prepared(setting: Setting) -> Training:
    """What a run has once its model is loaded (`run.prepare`), with one row to train on."""
    method, auto = METHODS[setting.method], cast(Any, AutoModelForSequenceClassification)
    model = auto.from_config(
        setting.architecture, dtype=setting.dtype if method.frozen_base else torch.float32
    )
    found = setting.method == "adaptive"
    lora = LoraOptions(rank=None if found else setting.rank, targets=setting.targets)
    method.prepare(model, RunConfig(lora=lora), [])
    for layer in lora_layers(model).values() if found else ():
        layer.watch(False)  # until the ranks are what they are to be
        rank = min(setting.rank, layer.in_features, layer.out_features)
        layer.resize(
            layer.lora_A.new_zeros(rank, layer.in_features), layer.lora_B.new_zeros(layer.out_features, rank)
        )
    if setting.base_bits is not None and method.frozen_base:
        quantized.quantize(model, setting.base_bits)
    compute = Compute.for_model(
        model,
        dtype=setting.dtype,
        frozen_base=method.frozen_base,
        padding=setting.padding,
        verify=False,
        max_length=architectures.longest(setting.architecture),
        pad_id=setting.architecture.pad_token_id,
        threads=1,
    )
    options = TrainOptions(
        epochs=1, batch_size=1, accumulate=setting.workers, lr=1e-4, optimizer="adamw", schedule="constant", warmup=0.0,
        weight_decay=0.0, clip=1.0,
    )  # fmt: skip
    rows = random_rows(np.array([1]), setting.architecture, np.random.default_rng(0))
    # no step is the last, after which adapters are brought into their final form
    batches = GivenBatches([np.arange(1)], sys.maxsize)
    training = Training(model, rows, options=options, compute=compute, seed=0, batches=batches)
    if found:  # it watches the layers; no decision is due in a step
        training.rank = controller = RankController(model, torch.Tensor, sys.maxsize, training.update)
        for path, layer in controller.layers.items():
            controller.moments[path] = torch.zeros_like(cast(torch.Tensor, layer.moments))
    return training


def packs(architecture: Any) -> bool:
    """Whether models of this kind can be trained packed: a small one is built and asked (`attention.can_pack`)."""
    small = reduced(architecture, 2)
    for name, most in (("intermediate_size", 64), ("vocab_size", 1000)):
        if isinstance(getattr(small, name, None), int):
            setattr(small, name, min(most, getattr(small, name)))
    small.pad_token_id = min(small.pad_token_id, 1)
    with torch.random.fork_rng(devices=[]), loading.quiet():
        try:
            auto: Any = AutoModelForSequenceClassification
            return attention.can_pack(auto.from_config(small))[0]
        except (ValueError, RuntimeError, IndexError, TypeError):
            return False


def reduced(architecture: Any, layers: int) -> Any:
    """The same architecture with its first layers only."""
    few = copy.deepcopy(architecture)
    few.num_hidden_layers = layers
    if getattr(few, "layer_types", None):
        few.layer_types = few.layer_types[:layers]
    return few
