"""One training loop for every method: the same rows in the same order for the same seed, the same schedule, the same evaluation.

    Encoded rows ─► batches of row numbers ─► tokens ─► model ─► logits [rows, classes] ─► cross-entropy ─► optimizer step

A `Training` is the whole state of a run. It is a pure function of its inputs and the step, so a checkpoint needs nothing but the
trained weights, the optimizer's moments and the step number, and a resumed run continues bit for bit.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rankwise.attention import can_pack, packed
from rankwise.config import TrainOptions
from rankwise.data import Encoded
from rankwise.dropout import Key
from rankwise.errors import RankwiseError
from rankwise.measure import Speed
from rankwise.optim import Kind, Update, schedule_factor
from rankwise.packing import PackedBatch, batch_order, pack, pad, token_batches
from rankwise.readout import packed_logits
from rankwise.streams import seed_torch, stream_seed
from rankwise.workers import Workers

Padding = Literal["packed", "longest", "max_length"]
WARMUP_STEPS = 3
"""Steps left out of rows/s: the first ones also pay for allocation and kernel selection."""


@dataclass(frozen=True)
class PaddedBatch:
    """Rows of a batch as padded model inputs, with their numbers and labels."""

    inputs: dict[str, Tensor]
    labels: Tensor | None
    rows: np.ndarray


@dataclass(frozen=True)
class Compute:
    """How a model is run: where, in which number type, packed or padded, on how many threads side by side.

    Attributes:
        device: of the model and its batches.
        autocast: dtype of the products where the weights stay in float32 (full fine-tuning), or None.
        padding: `packed`, `longest` or `max_length`.
        max_length: what `max_length` pads to.
        pad_id: the id that fills padding.
        workers: what packed batches are divided over.
    """

    device: torch.device
    autocast: torch.dtype | None
    padding: Padding
    max_length: int
    pad_id: int
    workers: Workers = field(default_factory=Workers)

    def batches(
        self, model: nn.Module, rows: Encoded, which: np.ndarray, *, key: Key | None = None, parts: int = 1
    ) -> list[PackedBatch] | list[PaddedBatch]:
        """Some rows as `parts` model inputs or more, on the device.

        Args:
            model: whose inputs they will be.
            rows: where they are.
            which: their numbers.
            key: names dropout's random stream where rows are packed.
            parts: about equal parts, at least; fewer where there are fewer rows.
        """
        if self.padding == "packed":
            batches = pack(rows, which, model=model, key=key).divide(parts)
            return [
                (batch.fill() if self.device.type == "cpu" else batch).to(self.device) for batch in batches
            ]
        to = self.max_length if self.padding == "max_length" else "longest"
        return [
            self._padded(pad(rows, part, self.pad_id, to), part)
            for part in np.array_split(which, min(parts, len(which)))
        ]

    def _padded(self, batch: dict[str, Tensor], rows: np.ndarray) -> PaddedBatch:
        moved = {name: tensor.to(self.device) for name, tensor in batch.items()}
        return PaddedBatch(labels=moved.pop("labels", None), inputs=moved, rows=rows)

    def logits(self, model: nn.Module, batch: PackedBatch | PaddedBatch) -> Tensor:
        """Logits [rows, classes] in float32, in the order of the batch's own rows and labels. Call it inside `running(model)`."""
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            if isinstance(batch, PackedBatch):
                return packed_logits(model, batch).float()
            return model(**batch.inputs).logits.float()

    @contextlib.contextmanager
    def running(self, model: nn.Module) -> Iterator[None]:
        """Switches a model to packed attention for a block of code, and back."""
        with packed(model) if self.padding == "packed" else contextlib.nullcontext():
            yield


def choose_padding(model: nn.Module, asked: Padding) -> tuple[Padding, str]:
    """`packed` where the model allows it, else `longest`; and why, for the first lines of a run."""
    if asked != "packed":
        return asked, f"padding {asked}, as asked for"
    possible, reason = can_pack(model)
    return (
        ("packed", "packed: no padding")
        if possible
        else ("longest", f"padded to the longest of a batch: {reason}")
    )


@dataclass(frozen=True)
class Step:
    """What one optimizer step did.

    Attributes:
        step: from 1.
        loss: mean cross-entropy of its rows.
        lr: learning rate it used.
        grad_norm: before clipping.
        rows: texts in the batch.
        tokens: real tokens in the batch, padding not counted.
        seconds: it took.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    rows: int
    tokens: int
    seconds: float


class Training:
    """A model being trained on encoded rows; `step()` until `done`.

    Args:
        model: with `requires_grad` as the method wants it; trained in place.
        rows: token ids with labels.
        options: every setting given (no None among epochs, batch_size, lr, optimizer, schedule, warmup, weight_decay, clip).
        compute: how the model is run.
        seed: of data order and dropout.

    Raises:
        RankwiseError: nothing to train, or no rows.
    """

    def __init__(
        self, model: nn.Module, rows: Encoded, options: TrainOptions, compute: Compute, *, seed: int
    ) -> None:
        if len(rows) == 0:
            raise RankwiseError("There are no rows to train on.")
        self.model, self.rows, self.options, self.compute, self.seed = model, rows, options, compute, seed
        self.batch_size = cast(int, options.batch_size)
        self.peak_lr, self.clip = cast(float, options.lr), cast(float, options.clip)
        self.steps_per_epoch = math.ceil(len(rows) / self.batch_size)
        self.steps = max(1, round(cast(float, options.epochs) * self.steps_per_epoch))
        self.step_number = 0
        self.seconds = 0.0
        self.speed = Speed(skip=WARMUP_STEPS)
        self.update = self._update()
        schedule = cast(Literal["linear", "cosine", "constant"], options.schedule)
        self.factor = schedule_factor(schedule, self.steps, cast(float, options.warmup))
        self._epoch_batches: tuple[int, list[np.ndarray]] = (-1, [])

    def _update(self) -> Update:
        trained = [p for _, p in self._trained()]
        if not trained:
            raise RankwiseError("Nothing of this model is trained. Call rankwise.adapt(model) first.")
        small = 2 * sum(p.numel() for p in trained) < sum(p.numel() for p in self.model.parameters())
        flat = small and len({p.dtype for p in trained}) == 1
        kind, decay = cast(Kind, self.options.optimizer), cast(float, self.options.weight_decay)
        return Update(trained, kind, self.peak_lr, decay, flat=flat)

    @property
    def done(self) -> bool:
        return self.step_number >= self.steps

    @property
    def epoch(self) -> int:
        """Passes over the rows begun before the next step, from 0."""
        return self.step_number // self.steps_per_epoch

    def batch(self) -> np.ndarray:
        """Row numbers of the next step."""
        if self._epoch_batches[0] != self.epoch:
            grouped = self.compute.padding == "longest"
            order = batch_order(
                self.rows.lengths,
                self.batch_size,
                seed=stream_seed(self.seed, "order", self.epoch),
                group_by_length=grouped,
            )
            self._epoch_batches = (self.epoch, order)
        return self._epoch_batches[1][self.step_number % self.steps_per_epoch]

    def step(self) -> Step:
        """One optimizer step. Call it inside `compute.running(model)`.

        Raises:
            RankwiseError: the loss is not a number.
        """
        started = time.perf_counter()
        batch = self.batch()
        self.model.train()
        seed_torch(self.seed, "dropout", self.step_number)
        loss = self._backward(batch)
        if not math.isfinite(loss):
            half = self.compute.autocast is not None or any(
                p.dtype in (torch.bfloat16, torch.float16) for p in self.model.parameters()
            )
            raise RankwiseError(
                f"The loss is {loss} at step {self.step_number + 1} of {self.steps}. Lower --lr (now {self.peak_lr:g})"
                f"{', or use --dtype float32' if half else ''}."
            )
        norm = self.update.clip(self.clip)
        lr = self.peak_lr * self.factor(self.step_number)
        self.update.step(lr)
        self.step_number += 1
        seconds = time.perf_counter() - started
        self.seconds += seconds
        tokens = int(self.rows.lengths[batch].sum())
        self.speed.step(len(batch), tokens)
        return Step(self.step_number, loss, lr, norm, len(batch), tokens, seconds)

    def _backward(self, batch: np.ndarray) -> float:
        """Gradients of the mean loss over the batch; returns that loss."""
        workers = self.compute.workers
        parts = max(self.options.accumulate, workers.count if self.compute.padding == "packed" else 1)
        batches = self.compute.batches(
            self.model, self.rows, batch, key=(self.seed, self.step_number), parts=parts
        )
        losses = []
        for loss, gradients in workers.map(lambda part: self._gradients(part, len(batch)), batches):
            losses.append(loss)
            self.update.add(gradients)
        return sum(losses)

    def _gradients(
        self, part: PackedBatch | PaddedBatch, rows: int
    ) -> tuple[float, tuple[Tensor | None, ...]]:
        """One part's share of the mean loss over `rows` rows, and its gradients."""
        loss = (
            F.cross_entropy(self.compute.logits(self.model, part), cast(Tensor, part.labels), reduction="sum")
            / rows
        )
        return loss.item(), torch.autograd.grad(loss, self.update.parameters, allow_unused=True)

    def save(self, folder: Path) -> None:
        """Writes trained weights, optimizer state and position; `folder` exists and is empty."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._trained():
            tensors[f"model.{name}"] = parameter.detach()
            for key, value in self.update.state(parameter).items():
                tensors[f"optimizer.{key}.{name}"] = value
        if self.update.flat:  # safetensors wants each tensor in memory of its own
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "training.safetensors")
        position = {"step": self.step_number, "seconds": self.seconds, "steps": self.steps}
        (folder / "training.json").write_text(json.dumps(position), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote, into a `Training` made with the same arguments."""
        position = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "training.safetensors")
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(tensors[f"model.{name}"])
                state = {
                    key.split(".", 2)[1]: value
                    for key, value in tensors.items()
                    if key.startswith("optimizer.") and key.split(".", 2)[2] == name
                }
                self.update.load_state(parameter, state)
        self.step_number, self.seconds = position["step"], position["seconds"]

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]


def predict_logits(
    model: nn.Module,
    rows: Encoded,
    compute: Compute,
    *,
    max_tokens: int = 8192,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> np.ndarray:
    """Logits of every row, float32 [rows, classes], in the rows' own order.

    Args:
        model: left in eval mode.
        rows: token ids; labels aren't looked at.
        compute: how the model is run.
        max_tokens: tokens a batch, padding included; batches go by length.
        on_progress: called with (rows done, of all) after each batch.
    """
    if len(rows) == 0:
        raise RankwiseError("There are no rows to run the model on.")
    model.eval()
    done, result = 0, np.empty(0)

    @torch.no_grad()
    def run(which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (batch,) = compute.batches(model, rows, which)
        return batch.rows, compute.logits(model, batch).cpu().numpy()

    with compute.running(model):
        for some, logits in compute.workers.map(run, token_batches(rows.lengths, max_tokens)):
            if done == 0:
                result = np.empty((len(rows), logits.shape[1]), dtype=np.float32)
            result[some] = logits
            done += len(some)
            on_progress(done, len(rows))
    return result


def mean_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy of logits [n, classes] against labels [n]."""
    return F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
