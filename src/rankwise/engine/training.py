"""One training loop for every method: the same rows in the same order for the same seed, the recipe's schedule, the same evaluation.

    Encoded rows ─► batches of row numbers ─► tokens ─► model ─► logits [rows, outputs] ─► loss ─► optimizer step

A `Training` is the whole state of a run. It is a pure function of its inputs and the step, so a checkpoint needs nothing but the
trained weights, the optimizer's moments and the step number, and a resumed run continues bit for bit.
"""

import contextlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from rankwise import hardware
from rankwise.config import TrainOptions, parse_memory
from rankwise.engine.attention import can_pack, packed
from rankwise.engine.autotune import Engine, fastest, within
from rankwise.engine.dropout import Key
from rankwise.engine.measure import Speed, TensorMemory, label, megabytes, recomputed
from rankwise.engine.mixed_precision import Copies
from rankwise.engine.optim import BETA2, Kind, Schedule, Update, add_up, schedule_factor
from rankwise.engine.packing import PackedBatch, batch_order, pack, pad, token_batches
from rankwise.engine.pooling import packed_logits
from rankwise.engine.threads import Workers, side_by_side
from rankwise.errors import RankwiseError
from rankwise.lora.layer import lora_layers
from rankwise.rank.controller import Decision, RankController, held_out_rows, settle
from rankwise.seeding import seed_torch, stream_seed
from rankwise.tasks.encoding import Encoded
from rankwise.tasks.losses import calibrated_losses, example_losses

Padding = Literal["packed", "longest", "max_length"]
WARMUP_STEPS = 3
"""Steps left out of rows/s: the first ones also pay for allocation and kernel selection."""
CURVE_POINTS = 20
"""Steps of a run, evenly apart, whose memory is followed, which makes a step take longer by a tenth to two thirds."""
LEAST_APART = 100
"""Steps between them at least."""
FORWARD_TOKENS = {"cpu": 2048, "cuda": 16_384}
"""Of a batch where nothing is kept for backward, at most; a GPU would spend the time of smaller ones starting kernels."""
FOR_ANY_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention kernels on a GPU. cuDNN's, PyTorch's first choice on some, are planned anew for every shape of a batch."""


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
        engine: how a batch is cut and run.
        threads: CPU threads in all.
    """

    device: torch.device
    autocast: torch.dtype | None
    padding: Padding
    max_length: int
    pad_id: int
    engine: Engine = field(default_factory=Engine)
    threads: int | None = None

    @cached_property
    def workers(self) -> Workers:
        """What parts of a batch run on."""
        count = self.engine.workers
        return side_by_side(count, max(1, (self.threads or torch.get_num_threads()) // count))

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
            batches = self.engine.cut(pack(rows, which, model=model, key=key), parts)
            return [
                (batch.fill() if self.device.type == "cpu" else batch).to(self.device) for batch in batches
            ]
        to = self.max_length if self.padding == "max_length" else "longest"
        parts = min(max(parts, self.engine.pieces(self.lengths(rows, which))), len(which))
        return [self._padded(pad(rows, part, self.pad_id, to), part) for part in np.array_split(which, parts)]

    def lengths(self, rows: Encoded, which: np.ndarray) -> np.ndarray:
        """Tokens of a batch's rows as the model sees them, padding included where it does."""
        lengths = rows.lengths[which]
        if self.padding == "packed":
            return lengths
        return np.full_like(lengths, self.max_length if self.padding == "max_length" else lengths.max())

    def _padded(self, batch: dict[str, Tensor], rows: np.ndarray) -> PaddedBatch:
        moved = {name: tensor.to(self.device) for name, tensor in batch.items()}
        return PaddedBatch(labels=moved.pop("labels", None), inputs=moved, rows=rows)

    def logits(self, model: nn.Module, batch: PackedBatch | PaddedBatch) -> Tensor:
        """Logits [rows, outputs] in float32 (float64 of a float64 model), in the order of the batch's own rows and labels.

        Call it inside `running(model)`.
        """
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            logits = (
                packed_logits(model, batch)
                if isinstance(batch, PackedBatch)
                else model(**batch.inputs).logits
            )
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @contextlib.contextmanager
    def running(self, model: nn.Module) -> Iterator[None]:
        """Switches a model to packed attention, and to recomputing its layers where the engine says so, for a block of code."""
        with contextlib.ExitStack() as stack:
            if self.device.type == "cuda":
                stack.enter_context(sdpa_kernel(FOR_ANY_SHAPE))
            if self.padding == "packed":
                stack.enter_context(packed(model))
            if self.engine.recompute:
                keyed = (
                    self.padding == "packed" and self.device.type == "cpu"
                )  # dropout knows its masks by their key
                stack.enter_context(_recomputing(model, keep_random_state=not keyed))
            yield


@contextlib.contextmanager
def _recomputing(model: nn.Module, *, keep_random_state: bool) -> Iterator[None]:
    """Makes layers run again in backward instead of keeping what they made, in training, for a block of code.

    Raises:
        RankwiseError: the model has no layers that can.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise RankwiseError(
            f"{type(model).__name__} can't recompute its layers, which --memory asks for. Take --memory fast."
        )
    again = partial(
        checkpoint,
        use_reentrant=False,
        preserve_rng_state=keep_random_state,
        determinism_check="none",
        context_fn=lambda: (contextlib.nullcontext(), recomputed()),
    )
    for layer in layers:
        layer.gradient_checkpointing = True
        setattr(layer, "_gradient_checkpointing_func", again)  # noqa: B010 (a function, as types see it)
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = False


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
        loss: mean loss of its rows, class weights included.
        lr: learning rate it used.
        grad_norm: before clipping.
        rows: texts in the batch.
        tokens: real tokens in the batch, padding not counted.
        seconds: it took.
        memory: MB by kind at its peak, with their total, where it was followed.
        flops: floating-point operations of its matrix products, where it was followed.
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


@runtime_checkable
class Acting(Protocol):
    """What a method does besides the loss, where it does anything (AdaLoRA)."""

    def gradients(self, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
        """Gradients of its own penalty, added to those of each step's loss."""
        ...

    def after_step(self, step: int) -> None:
        """Called after an optimizer step (from 1), its gradients still in place."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to keep, by name."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Sets what `state` gave."""
        ...


def total_steps(rows: int, options: TrainOptions) -> int:
    """Optimizer steps of a run over `rows` rows."""
    return max(1, round(cast(float, options.epochs) * math.ceil(rows / cast(int, options.batch_size))))


class Training:
    """A model being trained on encoded rows; `step()` until `done`.

    Args:
        model: with `requires_grad` as the method wants it; trained in place.
        rows: token ids with labels.
        options: every setting given (no None among epochs, batch_size, lr, optimizer, schedule, warmup, weight_decay, clip).
        compute: how the model is run.
        seed: of data order and dropout.
        act: what the method does besides the loss.
        class_weights: float32 [outputs], see `losses.example_losses`; None counts every row the same.

    Raises:
        RankwiseError: nothing to train, or no rows.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Encoded,
        options: TrainOptions,
        compute: Compute,
        *,
        seed: int,
        act: Acting | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        if len(rows) == 0:
            raise RankwiseError("There are no rows to train on.")
        self.model, self.rows, self.options, self.compute, self.seed = model, rows, options, compute, seed
        self.act = act
        self.class_weights = None if class_weights is None else class_weights.to(compute.device)
        self.batch_size = cast(int, options.batch_size)
        self.peak_lr, self.clip = cast(float, options.lr), cast(float, options.clip)
        self.steps_per_epoch = math.ceil(len(rows) / self.batch_size)
        self.steps = total_steps(len(rows), options)
        self.step_number = 0
        self.seconds = self.rank_seconds = 0.0
        self.rank_note = ""
        self.speed = Speed(skip=WARMUP_STEPS)
        held_out = self._hold_out()
        self._followed, self._peak = -1, 0.0
        self.update = self._update()
        self.rank: RankController | None = None
        if held_out is not None:
            self.rank = RankController(
                model, self._held_out_losses, self.steps, self.update, seed=stream_seed(seed, "rank")
            )
        self._copies = Copies(model, self.update.parameters, compute.autocast)
        self._reserved = 4 * self._held()  # with gradients and moments
        schedule = cast(Schedule, options.schedule)
        self.factor = schedule_factor(
            schedule, self.steps, cast(float, options.warmup), options.warmup_steps or 0
        )
        self._epoch_batches: tuple[int, list[np.ndarray]] = (-1, [])

    def _update(self) -> Update:
        trained = [p for _, p in self._trained()]
        if not trained:
            raise RankwiseError("Nothing of this model is trained. Call rankwise.adapt(model) first.")
        small = 2 * sum(p.numel() for p in trained) < sum(p.numel() for p in self.model.parameters())
        flat = small and len({p.dtype for p in trained}) == 1
        kind, decay = cast(Kind, self.options.optimizer), cast(float, self.options.weight_decay)
        beta2 = BETA2 if self.options.beta2 is None else self.options.beta2
        return Update(trained, kind, self.peak_lr, decay, beta2=beta2, flat=flat)

    @property
    def done(self) -> bool:
        return self.step_number >= self.steps

    @property
    def decisions(self) -> list[Decision]:
        """What was decided about ranks so far."""
        return [] if self.rank is None else self.rank.decisions

    @property
    def epoch(self) -> int:
        """Passes over the rows begun before the next step, from 0."""
        return self.step_number // self.steps_per_epoch

    def batch(self) -> np.ndarray:
        """Row numbers of the next step."""
        if self._epoch_batches[0] != self.epoch:
            self._epoch_batches = (self.epoch, self._batches(self.epoch))
        batch = self._epoch_batches[1][self.step_number % self.steps_per_epoch]
        if self.rank is None or self.rank.done:
            return batch
        return self._stand_ins[batch]

    def _hold_out(self) -> np.ndarray | None:
        """Rows that ranks are decided on, where the model's ranks are to be found and there is enough to find them on.

        Until the last decision another row stands in for each of them; then they come back. So every method takes as many steps
        of as many rows, and the others' rows are the same ones.
        """
        watched = [layer for layer in lora_layers(self.model).values() if layer.moments is not None]
        if not watched:
            return None
        n = held_out_rows(len(self.rows), self.steps * self.batch_size, self.steps)
        if n == 0:
            settle(watched)
            little = f"{len(self.rows):,} rows, {self.steps} steps"
            self.rank_note = (
                f"Too little to find ranks on ({little}): every layer keeps rank {watched[0].rank}."
            )
            return None
        self.rank_note = f"Ranks start at {watched[0].rank}; {n:,} training rows decide them and are trained on afterwards."
        order = np.random.default_rng(stream_seed(self.seed, "held out")).permutation(len(self.rows))
        self.held_out, others = order[:n], order[n:]
        self._stand_ins = np.arange(len(self.rows))
        self._stand_ins[self.held_out] = others[:n]
        return self.held_out

    def _held_out_losses(self) -> Tensor:
        rows = self.rows.select(self.held_out)
        logits = torch.from_numpy(predict_logits(self.model, rows, self.compute))
        labels = torch.from_numpy(cast(np.ndarray, rows.labels))
        weights = None if self.class_weights is None else self.class_weights.cpu()
        return calibrated_losses(logits, labels, weights)

    def _batches(self, epoch: int) -> list[np.ndarray]:
        return batch_order(
            self.rows.lengths,
            self.batch_size,
            seed=stream_seed(self.seed, "order", epoch),
            group_by_length=self.compute.padding == "longest",
        )

    def tune(self, memory: str = "fast", cache: Path | None = None) -> str:
        """Chooses how batches are run, by measuring, and says what it took, for the first lines of a run.

        Args:
            memory: `fast`, `lean`, or a size; see `config.parse_memory`.
            cache: folder where what was measured on this machine is kept.

        Raises:
            RankwiseError: the size is too small for the longest row.
        """
        typical = self.batch()
        engine = Engine()
        threads = self.compute.threads or torch.get_num_threads()
        if self.compute.device.type == "cpu" and self.compute.padding == "packed":
            octave = int(self.rows.lengths[typical].sum()).bit_length()
            key = f"{hardware.hardware(self.compute.device)['processor']}, {threads} threads, torch {torch.__version__}: "
            key += f"{type(self.model).__name__} of {sum(p.numel() for p in self.model.parameters())}, "
            key += f"{sum(p.numel() for p in self.update.parameters)} trained, {self._dtype()}, 2^{octave} tokens"
            engine = fastest(self._try, typical, threads, cache, key)
        limit = parse_memory(memory)
        if isinstance(limit, str):
            engine = replace(engine, recompute=limit == "lean")
        else:
            engine = within(
                limit, self._try, partial(self.compute.lengths, self.rows), self.rows.lengths, self._heaviest(),
                self._fixed(), engine.workers, self.compute.device.type,
            )  # fmt: skip
        self.compute = replace(self.compute, engine=engine)
        return self._say(engine, memory)

    def _say(self, engine: Engine, memory: str) -> str:
        parts = [f"{engine.workers} parts side by side"] if engine.workers > 1 else []
        parts += ["layers recomputed in backward"] if engine.recompute else []
        if engine.cost is not None:
            pieces = engine.pieces(self.compute.lengths(self.rows, self._heaviest()))
            parts += [f"the heaviest batch in {max(pieces, engine.workers)} parts to stay below {memory}"]
        return "; ".join(parts)

    def _try(self, engine: Engine, rows: np.ndarray) -> None:
        """Gradients of some rows, forgotten."""
        compute, self.model = replace(self.compute, engine=engine), self.model.train()
        with compute.running(self.model), self._copies.in_place():
            self._copies.refresh()
            batches = compute.batches(self.model, self.rows, rows, key=(0, 0))
            for _, gradients in compute.workers.map(
                lambda part: self._gradients(part, len(rows), compute), batches
            ):
                self.update.add(gradients[: len(self.update.parameters)])
        self.update.forget()

    def _heaviest(self) -> np.ndarray:
        """Rows of the batch with most tokens, over the epochs of the run."""
        batches = (
            b for epoch in range(math.ceil(self.steps / self.steps_per_epoch)) for b in self._batches(epoch)
        )
        return max(batches, key=lambda batch: self.compute.lengths(self.rows, batch).sum())

    def watched(self) -> frozenset[int]:
        """Steps (from 0) whose memory is followed: the heaviest batches, by tokens and by attention, the last step, and up to
        `CURVE_POINTS` over the run.

        The first step has no moments yet, so that its batch is no peak. Which steps they are depends on nothing but the run itself: a
        resumed run follows the same.
        """
        sums: list[tuple[int, int]] = []
        for epoch in range(math.ceil(self.steps / self.steps_per_epoch)):
            seen = (self.compute.lengths(self.rows, batch) for batch in self._batches(epoch))
            sums += [(int(n.sum()), int((n.astype(np.int64) ** 2).sum())) for n in seen]
        first = min(1, self.steps - 1)
        heaviest = {first + int(np.argmax([one[i] for one in sums[first : self.steps]])) for i in (0, 1)}
        apart = max(self.steps // CURVE_POINTS, LEAST_APART)
        return frozenset(heaviest | {*range(1, self.steps, apart), self.steps - 1})

    def _fixed(self) -> float:
        """Bytes that are there all the time: weights; a gradient, two moments and the copies of what is trained."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        weights = sum(t.nbytes for t in {t.data_ptr(): t for t in tensors}.values())
        return weights + 3 * self._held() + self._copies.nbytes

    def _held(self) -> int:
        """Bytes of what is trained."""
        return sum(p.nbytes for p in self.update.parameters)

    def _keep_limit(self) -> None:
        """Under a memory limit, what layers that grew take is taken from the rows of a part, and what was cut is given to them."""
        engine, reserved = self.compute.engine, 4 * self._held()
        if engine.cost is not None and reserved != self._reserved:
            room = max(1.0, engine.room + (self._reserved - reserved) / engine.workers)
            self.compute = replace(self.compute, engine=replace(engine, room=room))
        self._reserved = reserved

    def _dtype(self) -> torch.dtype:
        return self.compute.autocast or next(p for p in self.model.parameters() if p.ndim >= 2).dtype

    def step(self, *, follow: bool = False) -> Step:
        """One optimizer step. Call it inside `compute.running(model)`.

        Args:
            follow: its memory and its operations too; that slows it down, so it doesn't count in rows/s. The step after a change of
                ranks is always followed. So are the passes over held-out rows that decide ranks; their peak is the step's memory where
                none was higher so far.

        Raises:
            RankwiseError: the loss is not a number.
        """
        trained = sum(p.numel() for p in self.update.parameters)
        before, self._followed = self._followed, trained
        changed = before not in (-1, trained)  # ranks did
        if before != trained:
            self._keep_limit()
        if follow or changed:
            with self.memory() as memory:
                step = self._step(counts=False)
            step = replace(step, memory=megabytes(memory.peak), flops=memory.flops)
            self._peak = max(self._peak, memory.peak_mb)
        else:
            step = self._step()
        if self.rank is not None:
            decides = self.rank.steps_taken + 1 in self.rank.checks
            with self.memory() if decides else contextlib.nullcontext() as memory:
                self._find_rank(self.rank)
            if memory is not None and memory.peak_mb > self._peak:
                self._peak = memory.peak_mb
                step = replace(step, memory=megabytes(memory.peak))
        return step

    def memory(self) -> TensorMemory:
        """What follows steps of this training, with all that it holds between them counted from the start."""
        memory = TensorMemory(self.compute.device, self.model, self._copies, self.update.optimizer)
        memory.label("gradients", self.update.kept)
        memory.label("optimizer", self._statistics())
        return memory

    def _step(self, *, counts: bool = True) -> Step:
        self.speed.begin()
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
        lr = self.peak_lr * self.factor(self.step_number)
        then = None if self.act is None else partial(self.act.after_step, self.step_number + 1)
        with self.speed.share("optimizer"):
            norm = self.update.clip(self.clip)
            self.update.step(lr, then)
        self.step_number += 1
        seconds = time.perf_counter() - started
        self.seconds += seconds
        tokens = int(self.rows.lengths[batch].sum())
        if counts:
            self.speed.step(len(batch), tokens)
        else:
            self.speed.start()
        return Step(self.step_number, loss, lr, norm, len(batch), tokens, seconds)

    def _find_rank(self, rank: RankController) -> None:
        started = time.perf_counter()
        with self.speed.share("rank decisions"):
            rank.step()
            if self.done:
                rank.sort()
        seconds = time.perf_counter() - started
        self.rank_seconds += seconds
        self.seconds += seconds

    def _backward(self, batch: np.ndarray) -> float:
        """Gradients of the mean loss over the batch; returns that loss."""
        with self.speed.share("data"):
            batches = self.compute.batches(
                self.model, self.rows, batch, key=(self.seed, self.step_number), parts=self.options.accumulate
            )
        at_once = min(self.compute.workers.count, len(batches))
        losses = []
        with self.speed.share("optimizer"):
            self._copies.refresh()
        trained = len(self.update.parameters)
        with self._copies.in_place():
            for loss, gradients in self.compute.workers.map(
                lambda part: self._gradients(part, len(batch), at_once=at_once), batches
            ):
                losses.append(loss)
                with self.speed.share("optimizer"):
                    self.update.add(gradients[:trained])
                    add_up(self._moments(), gradients[trained:])
        if self.act is not None:
            self.update.add(self.act.gradients(self.update.parameters))
        label("batch", batches)
        label("gradients", self.update.kept)
        label("optimizer", self._statistics())
        return sum(losses)

    def _moments(self) -> list[Tensor]:
        """What collects the statistics that ranks are found by, where they are (`lora.LoRALinear.moments`)."""
        return [] if self.rank is None else [cast(Tensor, x.moments) for x in self.rank.layers.values()]

    def _statistics(self) -> list[Tensor]:
        """Those tensors, what the last step left in them, and the moving sums."""
        found = [t for m in self._moments() for t in (m, m.grad) if t is not None]
        return found if self.rank is None else [*found, *self.rank.moments.values()]

    def _gradients(
        self, part: PackedBatch | PaddedBatch, rows: int, compute: Compute | None = None, at_once: int = 1
    ) -> tuple[float, tuple[Tensor | None, ...]]:
        """One part's share of the mean loss over `rows` rows, and its gradients; `at_once` parts run side by side."""
        compute = compute or self.compute
        with self.speed.share("forward", at_once):
            logits = compute.logits(self.model, part)
            loss = example_losses(logits, cast(Tensor, part.labels), self.class_weights).sum() / rows
            value = loss.item()  # on a GPU this waits for what forward has queued
        with self.speed.share("backward", at_once):
            wanted = [*self._copies.leaves(self.update.parameters), *self._moments()]
            return value, torch.autograd.grad(loss, wanted, allow_unused=True)

    def save(self, folder: Path) -> None:
        """Writes trained weights, optimizer state and position; `folder` exists and is empty."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._trained():
            tensors[f"model.{name}"] = parameter.detach()
            for key, value in self.update.state(parameter).items():
                tensors[f"optimizer.{key}.{name}"] = value
        position: dict[str, Any] = {"step": self.step_number, "seconds": self.seconds, "steps": self.steps}
        if self.rank is not None:
            found, position["rank"] = self.rank.state()
            tensors |= {f"rank.{name}": value for name, value in found.items()}
            position["rank_seconds"] = self.rank_seconds
        if self.act is not None:
            tensors |= {f"method.{name}": tensor for name, tensor in self.act.state().items()}
        if self.update.flat:  # safetensors wants each tensor in memory of its own
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "training.safetensors")
        (folder / "training.json").write_text(json.dumps(position), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote, into a `Training` made with the same arguments."""
        position = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "training.safetensors", device=str(self.compute.device))
        states: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                what, _, name = rest.partition(".")
                states[name][what] = value
        self.update.resize({p: (tensors[f"model.{name}"], states[name]) for name, p in self._trained()})
        if self.rank is not None:
            found = {k.removeprefix("rank."): v for k, v in tensors.items() if k.startswith("rank.")}
            self.rank.load(found, position["rank"])
            self.rank_seconds = position["rank_seconds"]
        if self.act is not None:
            self.act.load_state(
                {k.removeprefix("method."): v for k, v in tensors.items() if k.startswith("method.")}
            )
        self.step_number, self.seconds = position["step"], position["seconds"]

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]


def predict_logits(
    model: nn.Module,
    rows: Encoded,
    compute: Compute,
    *,
    max_tokens: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> np.ndarray:
    """Logits of every row, float32 [rows, outputs], in the rows' own order.

    Args:
        model: left in eval mode.
        rows: token ids; labels aren't looked at.
        compute: how the model is run.
        max_tokens: tokens a batch, padding included; batches go by length. Default: `FORWARD_TOKENS`.
        on_progress: called with (rows done, of all) after each batch.
    """
    if len(rows) == 0:
        raise RankwiseError("There are no rows to run the model on.")
    model.eval()
    done, result = 0, np.empty(0)

    @torch.no_grad()
    def run(which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (batch,) = whole.batches(model, rows, which)
        return batch.rows, whole.logits(model, batch).cpu().numpy()

    whole = replace(compute, engine=Engine())
    most = max_tokens or FORWARD_TOKENS.get(compute.device.type, FORWARD_TOKENS["cpu"])
    with compute.running(model):
        for some, logits in compute.workers.map(
            run, token_batches(rows.lengths, compute.engine.tokens(most))
        ):
            if done == 0:
                result = np.empty((len(rows), logits.shape[1]), dtype=np.float32)
            result[some] = logits
            done += len(some)
            on_progress(done, len(rows))
    return result
