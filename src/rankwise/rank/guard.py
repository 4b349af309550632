"""Keep rank decisions sound in a training that isn't: numbers that aren't finite, ranks or layers that other code changed.

Each such event gets a note, is counted, or raises an error. In a healthy training none occurs.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, distributed, nn

from rankwise.errors import RankwiseError
from rankwise.lora.low_rank import LowRankLayer
from rankwise.lora.peft_layer import low_rank_layers
from rankwise.lora.wrappers import bare
from rankwise.rank.components import OptimizerState
from rankwise.rank.evidence import HeldOutTest
from rankwise.rank.resize import Resizer
from rankwise.rank.statistics import Statistics
from rankwise.rank.torch_optimizer import TorchOptimizer


@runtime_checkable
class SameEverywhere(Protocol):
    """Checks that all processes that train together have the same bits in some tensors, and the same text."""

    def __call__(self, what: str, tensors: Iterable[Tensor], text: str = "", /) -> None:
        """
        Args:
            what: they are, for the error.
            tensors: in the same order in every process.
            text: compared with them.

        Raises:
            RankwiseError: they differ.
        """
        ...


class Guard:
    """Checks the layers and the numbers of a `RankController`.

    Args:
        model: without its wrappers.
        layers: its LoRA layers, by module path.
        optimizer: holds their state.
        resizer: knows the ranks that the controller gave them.
        several: processes train the same model together, and may share out its frozen weights.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, LowRankLayer],
        optimizer: OptimizerState,
        resizer: Resizer,
        *,
        several: bool = False,
    ) -> None:
        self.several = several
        self.model, self.layers, self.optimizer, self.resizer = model, layers, optimizer, resizer
        self._matrices = [(layer.lora_A, layer.lora_B) for layer in layers.values()]
        self._all_layers = list(low_rank_layers(model).values())
        self._skipped: Tensor | int = 0
        self._has_stepped = False
        self._said: list[str] = []

    def notes(self, steps: int) -> list[str]:
        """Return a sentence for each kind of event that a healthy training doesn't have.

        Args:
            steps: taken so far.
        """
        found = list(self._said)
        if self.skipped_steps:
            found.append(
                f"{self.skipped_steps:,} of {steps:,} steps were skipped: their gradients or statistics weren't finite."
            )
        if isinstance(self.optimizer, TorchOptimizer) and self.optimizer.reset:
            found.append(
                f"{self.optimizer.name} keeps state that isn't known to follow a change of rank. It begins anew in every layer that is "
                "resized."
            )
        return found

    def say(self, step: int, what: str) -> None:
        """Keep a note of what happened at a step, and warn with it."""
        self._said.append(f"step {step}: {what}")
        warnings.warn(self._said[-1], stacklevel=4)

    @property
    def skipped_steps(self) -> int:
        """Steps whose statistics weren't finite or that the optimizer didn't take, as after an overflow in float16."""
        return int(self._skipped)

    @skipped_steps.setter
    def skipped_steps(self, steps: int) -> None:
        self._skipped = steps

    def take_statistics(self, statistics: Statistics) -> None:
        """Add what a step's backward left to the statistics, and count the step where it left nothing usable."""
        scale = self.optimizer.last_scale() if isinstance(self.optimizer, TorchOptimizer) else 1.0
        if scale is None and self._has_stepped:
            statistics.take()
            self._skipped = self._skipped + 1
            return
        if scale is not None and not self._has_stepped:
            self._has_stepped = True
            if scale != 1.0:  # the statistics of steps skipped before this one have an unknown scale
                statistics.sums = {}
        finite = statistics.update(1.0 if scale is None else scale)
        self._skipped = self._skipped + (~finite if isinstance(finite, Tensor) else 0)  # stays on the device

    def follow_layers(self, step: int) -> None:
        """Discard what belongs to other weights, where layers got other matrices from outside, by a state dict for example.

        That is the statistics and the pruned components of all layers, and the optimizer state of the layers that changed.

        Raises:
            RankwiseError: the matrices are other parameters than the optimizer trains.
        """
        for (path, layer), (A, B) in zip(self.layers.items(), self._matrices, strict=True):
            if layer.lora_A is not A or layer.lora_B is not B:
                raise RankwiseError(
                    f"lora_A and lora_B of {path} are other parameters than when the RankController was made, and the optimizer doesn't "
                    "train them. Load state dicts without assign=True, or make a new optimizer and a new RankController."
                )
        changed = {
            path: layer
            for path, layer in self.layers.items()
            if layer.replaced is not None or layer.rank != self.resizer.ranks[path]
        }
        if not changed:
            return
        if isinstance(self.optimizer, TorchOptimizer):
            self.optimizer.follow_layers()
        else:
            matrices = [p for layer in changed.values() for p in (layer.lora_A, layer.lora_B)]
            self.optimizer.resize({p: (p.detach().clone(), {}) for p in matrices})
        self.resizer.forget()
        self.say(
            step,
            f"{len(changed)} layers were given other weights from outside, by a state dict for example; all statistics begin anew.",
        )

    def check_layers(self) -> None:
        """Check that the model still has the same LoRA layers, and that none is merged.

        Raises:
            RankwiseError: it has others, or one is merged.
        """
        with bare(self.model, peft=True, shards=self.several) as plain:
            now = list(low_rank_layers(plain).values())
        if [*map(id, now)] != [*map(id, self._all_layers)]:
            raise RankwiseError(
                f"The model has other LoRA layers than when its RankController was made ({len(now)} now, {len(self._all_layers)} then). "
                "Make a new RankController, and a new optimizer."
            )
        for layer in now:
            layer.check_unmerged()

    def begin_check(self, held_out: HeldOutTest, step: int, kind: str) -> tuple[Tensor, Tensor] | None:
        """Check the layers and evaluate held-out rows, at the start of a check.

        Returns:
            The held-out losses [examples] with adapters and without. None where fewer than two are finite; a note then says so.
        """
        self.check_layers()
        losses, without_adapters = held_out.begin()
        return (losses, without_adapters) if self._enough(len(losses), held_out, step, kind) else None

    def begin_comparison(self, held_out: HeldOutTest, step: int, kind: str) -> Tensor | None:
        """Check the layers and evaluate held-out rows with the adapters alone, at the start of a check.

        Returns:
            What `HeldOutTest.begin_comparison` returns. None where fewer than two rows are finite; a note then says so.
        """
        self.check_layers()
        now = held_out.begin_comparison()
        return now if self._enough(now.shape[1], held_out, step, kind) else None

    def _enough(self, rows: int, held_out: HeldOutTest, step: int, kind: str) -> bool:
        """Return whether rows are left that can decide; note those that are left out."""
        left_out = 0 if held_out.compared is None else int((~held_out.compared).sum())
        few = f"no decision whether to {kind}" if rows < 2 else "they are left out"
        if left_out:
            self.say(step, f"the losses of {left_out} held-out rows aren't finite; {few}.")
        elif rows < 2:
            self.say(step, f"there are fewer than two held-out rows; {few}.")
        return rows >= 2


def check_placement(layers: Mapping[str, LowRankLayer], *, alone: bool = True) -> None:
    """Check that this process has all of the training, and whole matrices.

    Args:
        layers: by module path.
        alone: no other process may train the same model.

    Raises:
        RankwiseError: several processes train together, or DeepSpeed or FSDP has split the matrices.
    """
    for path, layer in layers.items():
        for matrix in (layer.lora_A, layer.lora_B):
            zero3, dtensor = hasattr(matrix, "ds_id"), type(matrix.data).__name__ == "DTensor"
            if zero3 or dtensor:
                raise RankwiseError(
                    f"The rank of {path} can't be found: {'DeepSpeed ZeRO-3' if zero3 else 'FSDP (a DTensor)'} has split its matrices. "
                    "Train with whole parameters, in one process."
                )
    processes = (
        distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    )
    if alone and processes > 1:
        raise RankwiseError(
            f"A RankController works in one process; {processes} train together here (torch.distributed). Ranks would differ between them."
        )
