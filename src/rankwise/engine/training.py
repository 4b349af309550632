"""One training loop for every method: the same rows in the same order for the same seed, the recipe's schedule, the same evaluation.

    Encoded rows ─► batch of row numbers ─► micro-batches ─► model ─► logits [rows, outputs] ─► loss ─► gradients ─► optimizer step
                    batch_schedule          compute                                                                  optim

A `Training` is the whole state of a run. `autotune.tune` chooses how its batches are run, `profiling` which steps have their memory
tracked, and `checkpoint` writes and reads its state.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.config import TrainOptions
from rankwise.engine.batch_schedule import BatchSchedule, total_steps
from rankwise.engine.compute import Compute, PaddedBatch, predict_logits
from rankwise.engine.execution import Engine
from rankwise.engine.held_out import collectors, hold_out, statistics
from rankwise.engine.measure import Speed, TensorMemory, label, megabytes
from rankwise.engine.mixed_precision import Copies
from rankwise.engine.optim import BETA2, Kind, Schedule, Update, add_up, schedule_factor
from rankwise.engine.packing import PackedBatch
from rankwise.engine.processes import ONE, answered
from rankwise.engine.sharding import Parts
from rankwise.errors import RankwiseError
from rankwise.rank import defaults
from rankwise.rank.controller import RankController
from rankwise.rank.decision import Decision
from rankwise.seeding import seed_torch, stream_seed
from rankwise.tasks.encoding import Encoded
from rankwise.tasks.objectives import Objective, of_model

WARMUP_STEPS = 3
"""First steps that don't count in rows/s, because they also pay for allocation and kernel selection."""
MOST_SKIPPED = 10
"""Steps in a row without a finite gradient that end a training."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step did.

    Attributes:
        step: from 1.
        loss: mean loss of its rows, class weights included.
        lr: learning rate.
        grad_norm: before clipping.
        rows: in the batch.
        tokens: in the batch, without padding.
        seconds: it took.
        memory: MB by kind at its peak, and their total, where the step was profiled; of the process that took most.
        flops: floating-point operations of its matrix products, where it was profiled; of all processes.
        skipped: nothing was updated, because a gradient wasn't finite.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    rows: int
    tokens: int
    seconds: float
    memory: dict[str, float] | None = None
    flops: int | None = None
    skipped: bool = False


@runtime_checkable
class MethodHooks(Protocol):
    """What a method does in a step besides the loss (AdaLoRA's penalty and its pruning)."""

    def gradients(self, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
        """Return the gradients of a penalty, one a parameter, which are added to the loss's."""
        ...

    def after_step(self, step: int) -> None:
        """Act after an optimizer step (from 1), while its gradients are still in place."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint has to keep, by name."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        ...


class Training:
    """A model being trained on encoded rows: call `step()` until `done`.

    Args:
        model: `requires_grad` says what is trained; trained in place.
        rows: token ids with labels.
        options: complete: none of epochs, batch_size, lr, optimizer, schedule, warmup, weight_decay, clip is None.
        compute: how the model is run, and by which processes. Each of them has a `Training` with the same weights and arguments, and
            calls `step()` as often.
        seed: of the order of rows and of dropout. Of several processes, each draws dropout's numbers from a stream of its own where rows
            are padded, or on a GPU.
        hooks: what the method does besides the loss.
        objective: gives the loss of a batch, and of the held-out rows that ranks are decided on. Default: the one of the model's config.
        class_weights: float32 [outputs], see `Objective.class_weights`; None counts every row the same.
        batches: rows of each step. Default: drawn by the seed, `options.epochs` times all rows.
        lr_factor: step (from 0) → learning rate as a share of its peak. Default: `options.schedule`.
        update_clipping: limit the updates of adapters, see `optim.Update`.

    Attributes:
        trained: the model's parameters that are trained.
        parts: what this process holds of them, where processes share them out; `update` trains that.
        skipped_steps: steps so far in which nothing was updated, because a gradient wasn't finite.
        between_steps: whether the state is one that a checkpoint may keep. A step that fails before it changes anything leaves it so.

    Raises:
        RankwiseError: nothing is trained, or there are no rows.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Encoded,
        *,
        options: TrainOptions,
        compute: Compute,
        seed: int,
        hooks: MethodHooks | None = None,
        objective: Objective | None = None,
        class_weights: Tensor | None = None,
        batches: BatchSchedule | None = None,
        lr_factor: Callable[[int], float] | None = None,
        update_clipping: bool = True,
    ) -> None:
        if len(rows) == 0:
            raise RankwiseError("There are no rows to train on.")
        self.model, self.rows, self.options, self.compute, self.seed = model, rows, options, compute, seed
        self.hooks, self.objective = hooks, objective or of_model(model)
        self.class_weights = None if class_weights is None else class_weights.to(compute.device)
        self.batches = batches or BatchSchedule(
            rows.lengths,
            batch_size=cast(int, options.batch_size),
            steps=total_steps(len(rows), options),
            seed=seed,
            group_by_length=compute.padding == "longest",
        )
        self.lr_factor = lr_factor or schedule_factor(
            cast(Schedule, options.schedule),
            self.steps,
            cast(float, options.warmup),
            options.warmup_steps or 0,
        )
        self.step_number = self.skipped_steps = self._skipped_in_a_row = 0
        self.seconds = self.rank_seconds = 0.0
        self.speed = Speed(skip=WARMUP_STEPS)
        strata = None if rows.labels is None else self.objective.strata(rows.labels)
        self.rank_note = hold_out(model, self.batches, strata)
        self.trained, self.parts = [p for p in model.parameters() if p.requires_grad], Parts(model)
        self.update = _update(self, model, update_clipping=update_clipping)
        self.rank: RankController | None = None
        if self.batches.held_out is not None:
            self.rank = defaults.make_controller(
                model,
                lambda: self._losses(self.batches.held_out),
                self.steps,
                self.update,
                seed=stream_seed(seed, "rank"),
                same_everywhere=None if compute.processes is ONE else compute.processes.check_same,
            )
        self.copies = Copies(model, self.update.parameters, compute.autocast)
        self._bytes_then, self._numbers_then, self._peak_mb = self.trained_bytes, -1, 0.0
        self.between_steps = True

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.batches.steps

    @property
    def done(self) -> bool:
        """Whether every step was taken."""
        return self.step_number >= self.steps

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return cast(float, self.options.lr)

    @property
    def decisions(self) -> list[Decision]:
        """What was decided about ranks so far."""
        return [] if self.rank is None else self.rank.decisions

    @property
    def notes(self) -> list[str]:
        """A sentence for each kind of event that a healthy training doesn't have."""
        if self.rank is not None:
            if self.rank.done or self.done:
                return self.rank.notes
            undecided = "Training ended before ranks were decided: layers have those of its last step."
            return [*self.rank.notes, undecided]
        n = self.skipped_steps
        return (
            [f"{n:,} of {self.step_number:,} steps were skipped: their gradients weren't finite."]
            if n
            else []
        )

    @property
    def trained_bytes(self) -> int:
        """Bytes of everything that is trained."""
        return sum(p.nbytes for p in self.update.parameters)

    def trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return everything that is trained, by name."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def batch(self) -> np.ndarray:
        """Return the row numbers of the next step."""
        return self.batches.batch(self.step_number, released=0 if self.rank is None else self.rank.done_at)

    def memory(self) -> TensorMemory:
        """Return a context manager that tracks tensor memory, and knows the kind of every tensor that this training holds."""
        memory = TensorMemory(self.compute.device, self.model, self.copies, self.update.optimizer)
        memory.label("gradients", self.update.kept, self.compute.processes.buffer)
        memory.label("optimizer", statistics(self.rank))
        return memory

    def step(self, *, profile: bool = False) -> Step:
        """Take one optimizer step, and decide ranks where that is due. Call it inside `compute.running(model)`.

        Args:
            profile: track its memory and operations. That makes it slower, so it doesn't count in rows/s. A step after a change
                of ranks is always profiled. A pass over held-out rows is, too; its peak becomes the step's where it is the
                highest so far.

        Raises:
            RankwiseError: the loss is not a number, or gradients aren't finite for many steps in a row.
            ProcessLost: another process has ended.
        """
        resized = self._was_resized()
        if profile or resized:
            with self.memory() as memory:
                step = self._step(counts=False)
            found = self.compute.processes.of_all((megabytes(memory.peak), memory.flops))
            most = max((peak for peak, _ in found), key=lambda peak: peak["total"])
            step = replace(step, memory=most, flops=sum(flops for _, flops in found))
            self._peak_mb = max(self._peak_mb, memory.peak_mb)
        else:
            step = self._step()
        if self.rank is not None:
            decides = self.rank.steps_taken + 1 in self.rank.checks
            counted = self.rank.guard.skipped_steps if step.skipped else 0
            with self.memory() if decides else contextlib.nullcontext() as memory:
                self._find_ranks(self.rank)
            if step.skipped and self.rank.guard.skipped_steps == counted:  # its statistics were finite
                self.rank.guard.skipped_steps += 1
            if memory is not None and memory.peak_mb > self._peak_mb:
                self._peak_mb = memory.peak_mb
                step = replace(step, memory=megabytes(memory.peak))
        self.between_steps = True
        return step

    def end(self) -> None:
        """End before the last step. Layers' components get the final order that they would have got after it."""
        if self.rank is not None and not self.done:
            self.rank.sort()

    def _was_resized(self) -> bool:
        """Adapt the micro-batches' memory budget to ranks that changed since the last step; return whether any did."""
        numbers = sum(p.numel() for p in self.update.parameters)
        before, self._numbers_then = self._numbers_then, numbers
        if before != numbers:
            extra = 4 * (self.trained_bytes - self._bytes_then)  # with a gradient and two moments
            self._bytes_then = self.trained_bytes
            if extra:
                engine = self.compute.engine.with_extra_bytes(extra)
                self.compute = replace(self.compute, engine=engine)
        return before not in (-1, numbers)

    def _step(self, *, counts: bool = True) -> Step:
        self.speed.begin()
        started = time.perf_counter()
        batch = self.batch()
        self.model.train()
        seed_torch(self.seed, "dropout", self.step_number, *self.compute.processes.streams)
        loss = self.backward(batch)
        if not math.isfinite(loss):
            raise _no_number(f"loss is {loss}", self)
        lr = self.peak_lr * self.lr_factor(self.step_number)
        then = None if self.hooks is None else partial(self.hooks.after_step, self.step_number + 1)
        self.between_steps = False
        with self.speed.share("optimizer"):
            for parameter in self.trained if self.parts else ():
                self.parts.own(parameter)
            norm = self.update.clip(
                cast(float, self.options.clip), self.parts, self.compute.processes.add_number
            )
            skipped = not math.isfinite(norm)
            if skipped:
                self._skip(norm)
            else:
                self.update.step(lr, then)
                self._skipped_in_a_row = 0
        self.step_number += 1
        seconds = time.perf_counter() - started
        self.seconds += seconds
        tokens = int(self.rows.lengths[batch].sum())
        if counts:
            self.speed.step(len(batch), tokens)
        else:
            self.speed.start()
        return Step(self.step_number, loss, lr, norm, len(batch), tokens, seconds, skipped=skipped)

    def _skip(self, norm: float) -> None:
        """Leave everything as it is in a step whose gradients have no finite norm."""
        self.update.forget()
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= min(MOST_SKIPPED, self.steps):
            what = f"gradient's norm is {norm}, {self._skipped_in_a_row} steps in a row,"
            raise _no_number(what, self)

    def backward(self, batch: np.ndarray) -> float:
        """Add the gradients of the mean loss over a batch (row numbers) to the update, over all processes; return that loss."""
        with self.speed.share("data"):
            micro_batches = self.compute.batches(
                self.model,
                self.rows,
                batch,
                key=(self.seed % 2**64, self.step_number),
                micro_batches=self.options.accumulate,
            )
        threads, losses, labels = self.compute.micro_batch_threads, [], self.rows.count_labels(batch)
        side_by_side = min(threads.count, len(micro_batches))
        with self.speed.share("optimizer"):
            self.copies.refresh()
        trained = len(self.update.parameters)
        fillers = self._fillers(batch, micro_batches) if self.compute.sharded else ()
        with self.copies.in_place():
            for loss, gradients in threads.map(
                lambda one: self.gradients(one, labels, side_by_side=side_by_side), micro_batches
            ):
                losses.append(loss)
                with self.speed.share("optimizer"):
                    self.update.add(gradients[:trained])
                    add_up(collectors(self.rank), gradients[trained:])
            for one in fillers:
                _, gradients = self.gradients(one, math.inf)
                if self.parts:  # their gradients are the sum over all processes
                    self.update.add(gradients[:trained])
        loss = float(sum(losses))
        if self.compute.processes.count > 1:
            whole = [holder for holder in self.update.holders if holder not in self.parts]
            with self.speed.share("communication"):
                loss = self.compute.processes.add_up([*whole, *collectors(self.rank)], loss)
        if self.hooks is not None:
            self.update.add(self.hooks.gradients(self.update.parameters))
        label("batch", micro_batches)
        label("gradients", self.update.kept)
        label("optimizer", statistics(self.rank))
        return loss

    def _fillers(
        self, batch: np.ndarray, micro_batches: Sequence[PackedBatch] | Sequence[PaddedBatch]
    ) -> Sequence[PackedBatch | PaddedBatch]:
        """Return micro-batches to run without effect, by which this process has as many as the one that has most."""
        missing = self.compute.processes.most(len(micro_batches)) - len(micro_batches)
        alone = replace(self.compute, engine=Engine(), processes=ONE)
        some = micro_batches or alone.batches(self.model, self.rows, batch[:1], key=(0, 0))
        return [some[0]] * missing

    def gradients(
        self,
        micro_batch: PackedBatch | PaddedBatch,
        labels: float,
        *,
        compute: Compute | None = None,
        side_by_side: int = 1,
    ) -> tuple[float, tuple[Tensor | None, ...]]:
        """Return a micro-batch's share of the mean loss over `labels` labels, and its gradients.

        Args:
            micro_batch: on the device.
            labels: of the whole batch: its rows, or their labelled tokens.
            compute: how the model is run. Default: the training's own.
            side_by_side: micro-batches that run at the same time, so that their time counts once.

        Returns:
            The loss; and a gradient for each of `update.parameters`, then for each layer that collects statistics.
        """
        compute = compute or self.compute
        with self.speed.share("forward", side_by_side):
            losses = compute.losses(
                self.model,
                micro_batch,
                lambda logits, y: self.objective.example_losses(logits, y, self.class_weights),
            )
            loss = losses.sum() / labels
            value = loss.item()  # on a GPU this waits for what forward has queued
        with self.speed.share("backward", side_by_side):
            wanted = [*self.copies.leaves(self.trained), *collectors(self.rank)]
            with answered():
                if self.parts:
                    return value, self.parts.gradients(loss, wanted, self.compute.processes)
                return value, torch.autograd.grad(loss, wanted, allow_unused=True)

    def _losses(self, which: np.ndarray | None) -> tuple[Float[Tensor, "rows"], Float[Tensor, "rows"]]:
        """Return the calibrated and the plain loss of each of some rows (row numbers), in eval mode."""
        rows = self.rows.select(cast(np.ndarray, which))
        logits = torch.from_numpy(predict_logits(self.model, rows, self.compute, objective=self.objective))
        labels = torch.from_numpy(cast(np.ndarray, rows.labels))
        weights = None if self.class_weights is None else self.class_weights.cpu()
        calibrated = self.objective.calibrated_losses(logits, labels, weights)
        return calibrated, self.objective.row_losses(logits, labels, weights)

    def _find_ranks(self, rank: RankController) -> None:
        started = time.perf_counter()
        with self.speed.share("rank decisions"):
            rank.step()
            if self.done:
                rank.sort()
        seconds = time.perf_counter() - started
        self.rank_seconds += seconds
        self.seconds += seconds


def _update(training: Training, model: nn.Module, *, update_clipping: bool) -> Update:
    """Return the optimizer of everything that is trained, in flat buffers where that is the smaller part of the model.

    Raises:
        RankwiseError: nothing is trained.
    """
    trained, options = training.trained, training.options
    if not trained:
        raise RankwiseError("Nothing of this model is trained. Call rankwise.adapt(model) first.")
    small = 2 * sum(p.numel() for p in trained) < sum(p.numel() for p in model.parameters())
    return Update(
        [training.parts.own(p) for p in trained],
        cast(Kind, options.optimizer),
        cast(float, options.lr),
        cast(float, options.weight_decay),
        beta2=BETA2 if options.beta2 is None else options.beta2,
        flat=small and len({p.dtype for p in trained}) == 1,
        clipping=update_clipping,
    )


def _no_number(what: str, training: Training) -> RankwiseError:
    """Return the error that says at which step something was not a number, and what to do."""
    half = training.compute.autocast is not None or any(
        p.dtype in (torch.bfloat16, torch.float16) for p in training.model.parameters()
    )
    instead = ', or use `dtype="float32"`' if half else ""
    return RankwiseError(
        f"The {what} at step {training.step_number + 1} of {training.steps}. "
        f"Lower `lr=` (now {training.peak_lr:g}){instead}."
    )
