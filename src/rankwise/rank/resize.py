"""Give layers other ranks, together with their optimizer state and their statistics. What is pruned is set aside and can come back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rankwise.lora.layer import LoRALinear, draw_A
from rankwise.lora.scaling import stretch
from rankwise.rank.components import Basis, Components, OptimizerState, change, identity_basis
from rankwise.rank.pruning_rule import PruningRule
from rankwise.rank.statistics import Statistics

Change = tuple[Basis, Components | None, float]
"""Of a layer: what stays, what comes beside it, and the factor on A and B."""


class Resizer:
    """Resizes layers.

    Attributes:
        aside: module path → the components that the last prune removed.
        ranks: module path → rank as it was left here; a layer that has another was resized by others.

    Args:
        layers: by module path.
        statistics: of the layers; they change with them.
        optimizer: holds the state of A and B; it changes, too.
        rule: is told what changed.
        seed: draws the A of new components.
        scaling_exponent: see `RankConfig`.
    """

    def __init__(
        self,
        layers: Mapping[str, LoRALinear],
        statistics: Statistics,
        optimizer: OptimizerState,
        rule: PruningRule,
        *,
        seed: int,
        scaling_exponent: float,
    ) -> None:
        self.layers, self.statistics, self.optimizer, self.rule = layers, statistics, optimizer, rule
        self.seed, self.scaling_exponent = seed, scaling_exponent
        self.aside: dict[str, Components] = {}
        self.ranks = {path: layer.rank for path, layer in layers.items()}

    def forget(self) -> None:
        """Begin anew with the layers as they are: without statistics, and with nothing set aside."""
        self.statistics.sums, self.aside = {}, {}
        self.ranks = {path: layer.rank for path, layer in self.layers.items()}

    def resize(self, changes: Mapping[str, tuple[int, int]], bases: Mapping[str, Basis], step: int) -> None:
        """Give layers other ranks.

        A lower rank keeps the most important components and sets the others aside. A higher one brings back what was set aside, or
        adds components that change nothing yet.

        Args:
            changes: module path → (rank before, rank after).
            bases: components of the layers, the most important first; layers without any are taken as they are.
            step: optimizer steps taken; new components depend on it and on the seed.
        """
        changed: dict[str, Change] = {}
        for path, (before, after) in changes.items():
            layer = self.layers[path]
            basis = bases.get(path) or identity_basis(layer)
            c = stretch(before, after, self.scaling_exponent)
            if after < before:
                rest = Basis(basis.T[after:], basis.inverse[:, after:], basis.importance[after:])
                aside = Components(*rest.matrices(layer), rest.statistics(self.statistics.of(path)))
                changed[path], self.aside[path] = (basis.first(after), None, c), aside.times(c)
            else:
                aside = self.aside.get(path)
                added = aside.times(c) if aside else self._new(layer, after - before, step)
                changed[path] = basis, added, c
            layer.scaling /= c**2
        self._apply(changed)

    def sort(self, bases: Mapping[str, Basis]) -> None:
        """Put the components of layers in the order of `bases`; the function stays as it is."""
        self._apply({path: (basis, None, 1.0) for path, basis in bases.items()})

    def _new(self, layer: LoRALinear, rank: int, step: int) -> Components:
        """Return components that change nothing yet: A drawn as at the start, B zero."""
        generator = torch.Generator().manual_seed((self.seed + step) % 2**63)
        return Components(
            draw_A(rank, layer.in_features, generator).to(layer.lora_A),
            layer.lora_B.new_zeros(layer.out_features, rank),
            torch.zeros(2 * rank + 1, rank, device=layer.lora_A.device),
        )

    def _apply(self, changed: Mapping[str, Change]) -> None:
        new: dict[nn.Parameter, tuple[Tensor, dict[str, Tensor]]] = {}
        for path, (basis, added, c) in changed.items():
            resized, self.statistics.sums[path] = change(
                self.layers[path], self.statistics.of(path), basis, added, self.optimizer, c
            )
            new |= resized
        self.optimizer.resize(new)
        for path, (basis, added, _) in changed.items():
            self.layers[path].collect_statistics()
            self.ranks[path] = self.layers[path].rank
            self.rule.resized(self.layers[path], basis, 0 if added is None else added.A.shape[0])
