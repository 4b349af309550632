"""The peak of one training step, from the step of `Training` itself on tensors that have shapes only.

    config ─► model, adapters, optimizer ─► a step of some rows ─► peak by kind of tensor, as in a real run
              └──────── on fake tensors: no weights, no arithmetic, no memory ────────┘

A deep model is not run whole. At any moment of a step, memory grows linearly with the number of layers, so two shallow models
tell the peak of a deep one.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from rankwise.bench.plan.fake_tensors import NoValues, shapes_only
from rankwise.bench.plan.setup import Imagined, Setting, build_training, draw_rows, with_layers
from rankwise.bench.plan.weight import shares, weight
from rankwise.engine import sharding
from rankwise.engine.batch_schedule import GivenBatches
from rankwise.engine.execution import Engine
from rankwise.engine.held_out import collectors
from rankwise.engine.measure import KINDS, Speed, TensorMemory
from rankwise.engine.mixed_precision import Copies
from rankwise.engine.processes import ONE
from rankwise.engine.training import Training

GATHERED = {"cpu": 1, "cuda": 2}
"""Layers that are whole at the same time, where processes share them out: on a GPU the next one is gathered while one is computed."""


class MemoryPlanner:
    """A training on fake tensors that returns the peak of any batch.

    Args:
        setting: what is trained.
        device: `cpu` or `cuda`.
        depths: numbers of layers of the models that are run. Default: 3 and 4 for deeper models whose layers are all alike,
            otherwise the model's own.
    """

    def __init__(self, setting: Setting, depths: tuple[int, ...] | None = None, device: str = "cpu") -> None:
        self.device = device
        self.setting, self._fake = setting, NoValues()
        self._forward_peaks: dict[tuple[int, ...], np.ndarray] = {}
        self.layers = int(setting.architecture.num_hidden_layers)
        alike = len(set(getattr(setting.architecture, "layer_types", None) or ())) < 2
        self.depths = depths or ((3, 4) if self.layers > 4 and alike else (self.layers,))
        with shapes_only(self._fake):
            self._trainings = [
                build_training(
                    replace(setting, architecture=with_layers(setting.architecture, n)),
                    Imagined(0, setting.processes) if setting.processes > 1 else ONE,
                )
                for n in self.depths
            ]
            for training in self._trainings:
                if setting.shard:
                    training.parts = sharding.Parts.imagined(training.model)
                    whole = [p for p in training.trained if p not in training.parts]
                    training.copies = Copies(training.model, whole, training.compute.autocast)
                update = training.update  # whose first step makes the optimizer's state
                update.add([torch.zeros_like(parameter) for parameter in update.parameters])
                update.step(0.0)
                whole = [holder for holder in update.holders if holder not in training.parts]
                training.compute.processes.add_up([*whole, *collectors(training.rank)], 0.0)

    @property
    def bytes_sent(self) -> int:
        """Bytes that each process sends a step."""
        first, *more = map(self._bytes_sent, self._trainings)
        return first + (self.layers - self.depths[0]) * (more[0] - first) if more else first

    def _bytes_sent(self, training: Training) -> int:
        count, processes = self.setting.processes, training.compute.processes
        processes.bytes_gathered = 0  # counted below
        sent = processes.bytes_sent
        if not self.setting.shard:
            return sent
        layers = sharding.shared_of_layers(training.model).values()
        parts = sum(sharding.part_bytes(p, count) for shared in layers for p in shared)
        gathers = 3 if training.parts else 2  # for forward, and again for backward; gradients once
        return sent + gathers * (count - 1) * parts

    def peak(self, lengths: np.ndarray, *, recompute: bool = False) -> dict[str, int]:
        """Return bytes by kind at the peak of a step after the first; of several processes, of the one with the heaviest share.

        Micro-batches that run side by side are assumed to reach their peaks at the same moment, which is the most they can take.

        Args:
            lengths: tokens of each row of the batch.
            recompute: with gradient checkpointing (`--memory lean`).
        """
        return largest(self.phases(lengths, recompute))

    def phases(self, lengths: np.ndarray, recompute: bool) -> np.ndarray:
        """Return bytes by kind at the peak of each phase of a step, [phases, kinds]."""
        return self._at_full_depth(lambda training: self._step_phases(training, lengths, recompute))

    def forward(self, lengths: np.ndarray) -> np.ndarray:
        """Return bytes by kind at the peak of a forward pass without gradients, as over held-out rows, [1, kinds].

        Args:
            lengths: tokens of each row.
        """
        rows = tuple(lengths.tolist())
        if rows not in self._forward_peaks:  # gradient checkpointing makes no difference to it
            self._forward_peaks[rows] = self._at_full_depth(lambda training: self._forward(training, lengths))
        return self._forward_peaks[rows]

    def _at_full_depth(self, peaks: Callable[[Training], np.ndarray]) -> np.ndarray:
        """Extrapolate peaks of the shallow models linearly to all layers."""
        first, *more = map(peaks, self._trainings)
        return first + (self.layers - self.depths[0]) * (more[0] - first) if more else first

    def _forward(self, training: Training, lengths: np.ndarray) -> np.ndarray:
        compute = replace(training.compute, engine=Engine(), processes=ONE)
        with shapes_only(self._fake):
            rows = draw_rows(self.setting, lengths)
            with training.memory() as memory, torch.no_grad(), compute.running(training.model.eval()):
                start = memory.events - 1
                for batch in compute.batches(training.model, rows, np.arange(len(lengths))):
                    logits = compute.logits(training.model, batch)
                    if self.setting.problem == "generation" and batch.labelled is not None:
                        training.objective.outputs(logits, batch.labels, batch.labelled.rows, len(lengths))
        trace = memory.trace()[start:]
        top = trace[trace.sum(axis=1).argmax()]
        phases = (trace[0] + self.setting.micro_batches * (top - trace[0]))[None]
        self._share_out(training, phases)
        return phases

    def _step_phases(self, training: Training, lengths: np.ndarray, recompute: bool) -> np.ndarray:
        training.compute = replace(training.compute, engine=Engine(recompute=recompute))
        weights = [weight(share, self.setting) for share in shares(lengths, self.setting.processes)]
        training.compute.processes.number = int(np.argmax(weights))
        training.step_number, training.batches = 0, GivenBatches([np.arange(len(lengths))], sys.maxsize)
        with shapes_only(self._fake):
            training.rows = draw_rows(self.setting, lengths)
            memory = training.memory()
            training.speed = marks = _Marks(memory)
            with memory, training.compute.running(training.model):
                training.step()
        phases = phase_peaks(memory.trace(), marks.starts, marks.ends)
        self._share_out(training, phases[:-1])
        self._share_out(training, phases[-1:], gathers=False)
        if training.parts:
            self._share_out_gradients(training, phases)
        return phases

    def _share_out(self, training: Training, phases: np.ndarray, *, gathers: bool = True) -> None:
        """Take the layers' weights that other processes hold out of some phases, in place, and add the layers that are whole meanwhile."""
        if not self.setting.shard:
            return
        count, layers = self.setting.processes, sharding.shared_of_layers(training.model).values()
        phases[:, KINDS.index("weights")] -= self._elsewhere(training)
        if gathers:
            layer = max(sum(count * sharding.part_bytes(p, count) for p in shared) for shared in layers)
            phases[:, KINDS.index("weights")] += GATHERED[self.device] * layer
            phases[:, KINDS.index("workspace")] += layer  # as it arrives, all weights in one piece

    def _share_out_gradients(self, training: Training, phases: np.ndarray) -> None:
        """Take the gradients and moments that other processes hold out of the phases of a step, in place."""
        elsewhere = self._elsewhere(training)
        phases[:, KINDS.index("optimizer")] -= 2 * elsewhere
        phases[:, KINDS.index("gradients")] -= elsewhere  # those that are kept
        phases[-2:, KINDS.index("gradients")] -= elsewhere  # those of this step

    def _elsewhere(self, training: Training) -> int:
        """Return the bytes of the layers' weights that other processes hold."""
        layers = sharding.shared_of_layers(training.model).values()
        return sum(
            p.nbytes - sharding.part_bytes(p, self.setting.processes) for shared in layers for p in shared
        )


class _Marks(Speed):
    """Records at which events of a memory trace the parts of a step start and end."""

    def __init__(self, memory: TensorMemory) -> None:
        super().__init__()
        self.memory = memory
        self.starts: dict[str, list[int]] = {}
        self.ends: dict[str, list[int]] = {}

    @contextmanager
    def share(self, name: str, side_by_side: int = 1) -> Iterator[None]:
        self.starts.setdefault(name, []).append(self.memory.events)
        yield
        self.ends.setdefault(name, []).append(self.memory.events)


def phase_peaks(trace: np.ndarray, start: dict[str, list[int]], end: dict[str, list[int]]) -> np.ndarray:
    """Return bytes by kind at the peak of forward, of the first and second half of backward, and of the update, [4, kinds].

    Memory rises or falls linearly along the layers, so the peak of a step lies at an end of one of these phases. The
    micro-batches of the trace ran one after the other; their peaks are added up in each phase.

    Args:
        trace: bytes by kind after each event, [events, kinds].
        start, end: events at which `forward` and `backward` start and end, one entry per micro-batch.
    """

    def top(first: int, last: int) -> np.ndarray:
        stretch = trace[first - 1 : max(first, last)]
        return stretch[stretch.sum(axis=1).argmax()]

    level = trace[start["forward"][0] - 1]
    stages = np.tile(level, (3, 1))
    for forward, backward, stop in zip(start["forward"], start["backward"], end["backward"], strict=True):
        middle = (backward + stop) // 2
        each = [top(forward, backward), top(backward, middle), top(middle, stop)]
        stages += np.array(each) - trace[forward - 1]
    return np.vstack([stages, top(end["backward"][-1], len(trace))])


def largest(phases: np.ndarray) -> dict[str, int]:
    """Return bytes by kind in the phase with most bytes."""
    return dict(zip(KINDS, phases[phases.sum(axis=1).argmax()].round().astype(int).tolist(), strict=True))
