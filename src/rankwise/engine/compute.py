"""How a model is run: where, in which number type, packed or padded, in how many micro-batches side by side.

    row numbers ─► Compute.batches ─► PackedBatch | PaddedBatch [on the device] ─► Compute.logits ─► logits [rows, outputs]

`Compute.for_model` builds it for training, evaluation and prediction alike, so all three run a model in the same way.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from rankwise.engine import token_losses
from rankwise.engine.batches import equal_sections, token_batches
from rankwise.engine.dropout import Key
from rankwise.engine.execution import Engine
from rankwise.engine.measure import recomputed
from rankwise.engine.pack_check import can_pack
from rankwise.engine.packed_mode import packed
from rankwise.engine.packing import LabelledTokens, PackedBatch, pack, pad
from rankwise.engine.pooling import packed_hidden, packed_logits, padded_logits
from rankwise.engine.processes import ONE, Processes, answered
from rankwise.engine.row_check import refused_by_name
from rankwise.engine.sharding import is_sharded
from rankwise.engine.threads import MicroBatchThreads, micro_batch_threads
from rankwise.engine.token_losses import Losses, has_plain_head
from rankwise.errors import RankwiseError
from rankwise.tasks.encoding import Encoded
from rankwise.tasks.labels import IGNORED
from rankwise.tasks.objectives import Objective

Padding = Literal["packed", "longest", "max_length"]
FORWARD_TOKENS = {"cpu": 2048, "cuda": 16_384}
"""Tokens a batch that keeps nothing for backward, at most. On a GPU, smaller batches would spend their time starting kernels."""
FOR_ANY_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention kernels on a GPU. cuDNN's, which PyTorch prefers on some, are planned anew for every shape of a batch."""


@dataclass(frozen=True)
class PaddedBatch:
    """Rows of a batch as padded model inputs.

    Attributes:
        inputs: `input_ids`, `attention_mask` and where there are any `token_type_ids`, int64 [rows, length].
        labels: of the rows, or of `labelled`, or None.
        rows: their numbers.
        labelled: the tokens that have a label; None where rows have.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None
    rows: np.ndarray
    labelled: LabelledTokens | None = None


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a model is run. `Compute.for_model` makes one.

    Attributes:
        device: of the model and its batches.
        max_length: tokens that `max_length` pads to.
        pad_id: token id that fills padding.
        autocast: dtype of the products where trained weights stay in float32, or None.
        padding: `packed`, `longest` or `max_length`.
        padding_reason: why that padding was taken, for the first lines of a run.
        engine: how a batch is divided and run.
        plain_head: the model is a language model whose losses can be computed in pieces, see `token_losses`.
        threads: CPU threads in all; torch's own setting where None.
        forward_rows: rows of a batch that keeps nothing for backward. None: as many as `FORWARD_TOKENS` allows.
        processes: that share batches, and rows that are evaluated. All of them call the same functions with the same arguments.
        sharded: the processes share out the model's weights, so each runs it as often as the others, in one thread.
    """

    device: torch.device
    max_length: int
    pad_id: int
    autocast: torch.dtype | None = None
    padding: Padding = "packed"
    padding_reason: str = ""
    engine: Engine = field(default_factory=Engine)
    threads: int | None = None
    forward_rows: int | None = None

    plain_head: bool = False
    processes: Processes = ONE
    sharded: bool = False

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        *,
        dtype: torch.dtype,
        frozen_base: bool,
        max_length: int,
        pad_id: int,
        padding: Padding = "packed",
        verify: bool = True,
        threads: int | None = None,
        processes: Processes = ONE,
    ) -> "Compute":
        """Return how to run a model on the device it is on, packed where that is asked for and possible.

        Args:
            model: a Transformers sequence classifier.
            dtype: of the matrix products.
            frozen_base: the base model is frozen and stays in its own dtype. Otherwise its weights stay in float32 and
                products are autocast to `dtype`.
            max_length: tokens that `max_length` pads to.
            pad_id: token id that fills padding.
            padding: asked for.
            verify: where `packed` is asked for, run a few rows to find out whether the model can, and whether its losses can be computed in
                pieces. Otherwise it is taken as asked for, and losses are computed at once.
            threads: CPU threads in all; torch's own setting where None.
            processes: that share batches.
        """
        taken, reason = choose_padding(model, padding) if verify else (padding, "")
        return cls(
            device=next(model.parameters()).device,
            autocast=None if frozen_base or dtype == torch.float32 else dtype,
            padding=taken,
            padding_reason=reason,
            max_length=max_length,
            pad_id=pad_id,
            threads=threads,
            plain_head=verify and taken == "packed" and has_plain_head(model),
            processes=processes,
            sharded=is_sharded(model),
        )

    @cached_property
    def micro_batch_threads(self) -> MicroBatchThreads:
        """The threads that micro-batches run on, side by side."""
        count = 1 if self.sharded else self.engine.micro_batches
        return micro_batch_threads(count, max(1, (self.threads or torch.get_num_threads()) // count))

    def batches(
        self,
        model: nn.Module,
        rows: Encoded,
        which: np.ndarray,
        *,
        key: Key | None = None,
        micro_batches: int = 1,
    ) -> list[PackedBatch] | list[PaddedBatch]:
        """Return this process's share of some rows as model inputs on the device, in `micro_batches` micro-batches or more.

        The processes' shares have about equal tokens. A process has none where there are fewer rows than processes. On a CPU, dropout
        in packed rows draws the same numbers however they are shared.

        Args:
            model: whose inputs they will be.
            rows: token ids of all rows.
            which: numbers of the rows wanted, by all processes.
            key: names dropout's random stream where rows are packed.
            micro_batches: of about equal size, at least, over all processes; fewer where there are fewer rows.
        """
        count = self.processes.count
        micro_batches = -(-micro_batches // count)
        if self.padding == "packed":
            shares = pack(rows, which, model=model, key=key).divide(count)
            batches = [
                batch
                for one in self.processes.share(shares)
                for batch in self.engine.divide(one, micro_batches)
            ]
            return [
                (batch.fill() if self.device.type == "cpu" else batch).to(self.device) for batch in batches
            ]
        if count > 1:
            which = self._share(rows, which)
        if len(which) == 0:
            return []
        to = self.max_length if self.padding == "max_length" else "longest"
        asked = max(micro_batches, self.engine.least_micro_batches(self.lengths(rows, which)))
        of_tokens = rows.token_labels is not None
        return [
            self._padded(pad(rows, some, self.pad_id, to), some, of_tokens=of_tokens)
            for some in np.array_split(which, min(asked, len(which)))
        ]

    def _share(self, rows: Encoded, which: np.ndarray) -> np.ndarray:
        """Return this process's share of rows that will be padded: rows of similar length."""
        padded = self.padding == "max_length"
        lengths = self.lengths(rows, which) if padded else rows.lengths[which]
        by_length = np.argsort(lengths, kind="stable")
        sections = list(pairwise(equal_sections(lengths[by_length], self.processes.count)))
        mine = [which[by_length[first:last]] for first, last in self.processes.share(sections)]
        return mine[0] if mine else which[:0]

    def lengths(self, rows: Encoded, which: np.ndarray) -> np.ndarray:
        """Return the tokens of each row of a batch as the model sees them, padding included."""
        lengths = rows.lengths[which]
        if self.padding == "packed":
            return lengths
        return np.full_like(lengths, self.max_length if self.padding == "max_length" else lengths.max())

    def _padded(self, batch: dict[str, Tensor], rows: np.ndarray, *, of_tokens: bool) -> PaddedBatch:
        labelled = None
        if of_tokens:
            row, place = (batch["labels"] != IGNORED).nonzero(as_tuple=True)
            labelled = LabelledTokens(row * batch["labels"].shape[1] + place, row).to(self.device)
            batch = batch | {"labels": batch["labels"][row, place]}
        moved = {name: tensor.to(self.device) for name, tensor in batch.items()}
        return PaddedBatch(labels=moved.pop("labels", None), inputs=moved, rows=rows, labelled=labelled)

    def logits(self, model: nn.Module, batch: PackedBatch | PaddedBatch) -> Float[Tensor, "labels outputs"]:
        """Return logits in float32 (float64 of a float64 model), in the order of the batch's labels, or of its rows.

        Call it inside `running(model)`.

        Raises:
            RankwiseError: the model can't take such rows.
        """
        autocast = torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)
        with refused_by_name(model), answered(), autocast:
            logits = (
                packed_logits(model, batch)
                if isinstance(batch, PackedBatch)
                else padded_logits(model, batch.inputs, batch.labelled)
            )
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def losses(
        self, model: nn.Module, batch: PackedBatch | PaddedBatch, losses: Losses
    ) -> Float[Tensor, "labels"]:
        """Return the loss of each label of a batch.

        Call it inside `running(model)`. Logits of many tokens are computed in pieces, where the model allows it.

        Args:
            model: as in `logits`.
            batch: with labels.
            losses: of logits and labels.

        Raises:
            RankwiseError: the model can't take such rows.
        """
        assert batch.labels is not None
        many = batch.labelled is not None and len(batch.labels) > token_losses.TOKENS
        if not (many and self.plain_head and isinstance(batch, PackedBatch)):
            return losses(self.logits(model, batch), batch.labels)
        autocast = torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)
        with refused_by_name(model), answered(), autocast:
            head = cast(Any, model).get_output_embeddings()
            return token_losses.in_pieces(head, packed_hidden(model, batch), batch.labels, losses)

    @contextlib.contextmanager
    def running(self, model: nn.Module) -> Iterator[None]:
        """Switch a model to packed attention, and to gradient checkpointing where the engine says so, for a block of code.

        Raises:
            RankwiseError: the model doesn't support gradient checkpointing.
        """
        with contextlib.ExitStack() as stack:
            if self.device.type == "cuda":
                stack.enter_context(sdpa_kernel(FOR_ANY_SHAPE))
            if self.padding == "packed":
                stack.enter_context(packed(model))
            if self.engine.recompute:
                # Packed on a CPU, dropout draws its masks from the batch's key and needs no random state.
                keyed = self.padding == "packed" and self.device.type == "cpu"
                stack.enter_context(_gradient_checkpointing(model, keep_random_state=not keyed))
            yield


@contextlib.contextmanager
def _gradient_checkpointing(model: nn.Module, *, keep_random_state: bool) -> Iterator[None]:
    """Have layers run again in backward instead of keeping their activations, in training, for a block of code.

    Raises:
        RankwiseError: the model has no layers that can.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise RankwiseError(
            f"{type(model).__name__} can't recompute its layers, which memory=lean or a small memory= asks for. "
            "Take memory=fast."
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
    """Return the padding asked for, or `longest` where a model can't be packed; and why, for the first lines of a run."""
    if asked != "packed":
        return asked, f"padding {asked}, as asked for"
    possible, reason = can_pack(model)
    if possible:
        return "packed", "packed: no padding"
    return "longest", f"padded to the longest of a batch: {reason}"


def predict_logits(
    model: nn.Module,
    rows: Encoded,
    compute: Compute,
    *,
    max_tokens: int | None = None,
    objective: Objective | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> np.ndarray:
    """Return logits of every row, float32 [rows, outputs], in the rows' own order; or what an objective keeps of them.

    Of rows of words that is [rows, words, outputs], NaN behind a row's last word. Several processes share the batches; each returns the
    logits of all, bit for bit those of a single process.

    Args:
        model: left in eval mode.
        rows: token ids; their labels aren't used, unless tokens have them.
        compute: how the model is run.
        objective: its `outputs` are returned. Needed where tokens have labels.
        max_tokens: tokens a batch, padding included; rows of similar length share one. Default: `FORWARD_TOKENS`.
        on_progress: called with (rows done, of all) after each batch; of this process's rows.

    Raises:
        RankwiseError: there are no rows.
    """
    if len(rows) == 0:
        raise RankwiseError("There are no rows to run the model on.")
    model.eval()
    done, result = 0, np.empty(0)

    @torch.no_grad()
    def run(which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (batch,) = whole.batches(model, rows, which)
        logits = whole.logits(model, batch)
        if objective is not None:
            of_row = None if batch.labelled is None else batch.labelled.rows
            logits = objective.outputs(logits, batch.labels, of_row, len(batch.rows))
        return batch.rows, logits.cpu().numpy()

    whole = replace(compute, engine=Engine(), processes=ONE)
    most = max_tokens or FORWARD_TOKENS.get(compute.device.type, FORWARD_TOKENS["cpu"])
    if rows.token_labels is not None:  # each token may have a logit for every word
        most = max(1, most // 4)
    every = token_batches(rows.lengths, compute.engine.forward_tokens(most), compute.forward_rows)
    batches = compute.processes.share(every)
    of = sum(map(len, batches))
    missing = compute.processes.most(len(batches)) - len(batches) if compute.sharded else 0
    with compute.running(model):
        for some, logits in compute.micro_batch_threads.map(run, batches):
            if done == 0:
                words = (rows.most_labels,) if logits.ndim == 3 else ()
                result = np.zeros((len(rows), *words, logits.shape[-1]), dtype=np.float32)
            if logits.ndim == 3:
                result[some] = np.nan
                result[some, : logits.shape[1]] = logits
            else:
                result[some] = logits
            done += len(some)
            on_progress(done, of)
        for _ in range(missing):
            run(every[0])
    return compute.processes.add_arrays(result if batches else None)
