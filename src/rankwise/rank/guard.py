"""What keeps rank decisions sound where a training isn't: numbers that aren't finite, ranks or layers that somebody else changed.

A healthy training never gets here. Everything else is said in a sentence, counted, or refused.
"""

import warnings
from collections.abc import Mapping

from torch import Tensor, nn

from rankwise.errors import RankwiseError
from rankwise.lora.layer import LoRALinear, lora_layers
from rankwise.lora.wrappers import bare
from rankwise.rank.components import OptimizerState
from rankwise.rank.evidence import HeldOutTest
from rankwise.rank.resize import Resizer
from rankwise.rank.torch_optimizer import TorchOptimizer


class Guard:
    """Watches over the layers and the numbers of a `RankController`.

    Attributes:
        skipped_steps: steps whose statistics weren't finite or that the optimizer didn't take, as after an overflow in float16.

    Args:
        model: without its wrappers.
        layers: its LoRA layers, by module path.
        optimizer: holds their state.
        resizer: knows the ranks that the controller gave them.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, LoRALinear],
        optimizer: OptimizerState,
        resizer: Resizer,
    ) -> None:
        self.model, self.layers, self.optimizer, self.resizer = model, layers, optimizer, resizer
        self.skipped_steps = 0
        self._said: list[str] = []

    def notes(self, steps: int) -> list[str]:
        """Return what happened in so many steps that a healthy training doesn't have, in sentences."""
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

    def count_step(self, finite: bool) -> None:
        """Count a step that left nothing usable behind.

        Args:
            finite: its statistics were.
        """
        skipped = isinstance(self.optimizer, TorchOptimizer) and self.optimizer.skipped()
        self.skipped_steps += skipped or not finite

    def follow_layers(self, step: int) -> None:
        """Forget statistics and what was set aside where others changed ranks: a state dict was loaded, for example."""
        ranks = {path: layer.rank for path, layer in self.layers.items()}
        changed = sum(rank != self.resizer.ranks[path] for path, rank in ranks.items())
        if changed:  # layers that kept their rank have other weights by now, too
            self.resizer.forget()
            self.say(
                step,
                f"{changed} layers were given other ranks from outside, by a state dict for example; all statistics begin anew.",
            )

    def check_layers(self) -> None:
        """Refuse a model that has other LoRA layers by now.

        Raises:
            RankwiseError: it has.
        """
        with bare(self.model) as plain:
            now = lora_layers(plain)
        if [*map(id, now.values())] != [*map(id, self.layers.values())]:
            raise RankwiseError(
                f"The model has other LoRA layers than when its RankController was made ({len(now)} now, {len(self.layers)} then). "
                "Make a new RankController, and a new optimizer."
            )

    def begin_check(self, held_out: HeldOutTest, step: int, kind: str) -> tuple[Tensor, Tensor] | None:
        """Begin a check.

        Returns:
            The held-out losses with adapters and without, or None, and a note, where they say nothing.
        """
        self.check_layers()
        whole, none = held_out.begin()
        left_out = 0 if held_out.compared is None else int((~held_out.compared).sum())
        few = f"no decision whether to {kind}" if len(whole) < 2 else "they are left out"
        if left_out:
            self.say(step, f"the losses of {left_out} held-out rows aren't finite; {few}.")
        elif len(whole) < 2:
            self.say(step, f"there are fewer than two held-out rows; {few}.")
        return None if len(whole) < 2 else (whole, none)
