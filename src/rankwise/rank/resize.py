"""Give layers other ranks, together with their optimizer state and their statistics. What was pruned is kept and can come back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rankwise.lora.layer import draw_A
from rankwise.lora.low_rank import LowRankLayer
from rankwise.lora.scaling import rank_change_factor
from rankwise.rank.components import Basis, Components, OptimizerState, change, identity_basis
from rankwise.rank.pruning_rule import PruningRule
from rankwise.rank.statistics import Statistics, all_finite

Change = tuple[Basis, Components | None, float]
"""Of a layer: what stays, what comes beside it, and the factor on A and B."""


class Resizer:
    """Resizes layers.

    Attributes:
        pruned: module path → the components that the last prune removed.
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
        layers: Mapping[str, LowRankLayer],
        statistics: Statistics,
        optimizer: OptimizerState,
        rule: PruningRule,
        *,
        seed: int,
        scaling_exponent: float,
    ) -> None:
        self.layers, self.statistics, self.optimizer, self.rule = layers, statistics, optimizer, rule
        self.seed, self.scaling_exponent = seed, scaling_exponent
        self.pruned: dict[str, Components] = {}
        self.ranks = {path: layer.rank for path, layer in layers.items()}

    def forget(self) -> None:
        """Begin anew with the layers as they are: without statistics, and with nothing that could come back."""
        self.statistics.sums, self.pruned = {}, {}
        self.ranks = {path: layer.rank for path, layer in self.layers.items()}
        for layer in self.layers.values():
            layer.replaced = None

    def resize(self, changes: Mapping[str, tuple[int, int]], bases: Mapping[str, Basis], step: int) -> None:
        """Prune layers, or let them grow.

        A lower rank keeps the most important components; the others can be restored. A higher one adds components that change nothing
        yet, and what was pruned before is forgotten. A layer stays as it is where its dtype can't hold the new matrices.

        Args:
            changes: module path → (rank before, rank after).
            bases: components of the layers, the most important first; layers without any are taken as they are.
            step: optimizer steps taken; new components depend on it and on the seed.
        """
        changed: dict[str, Change] = {}
        generator = torch.Generator().manual_seed((self.seed + step) % 2**63)
        for path, (before, after) in changes.items():
            layer = self.layers[path]
            basis = bases.get(path) or identity_basis(layer)
            c = rank_change_factor(before, after, self.scaling_exponent)
            self.pruned.pop(path, None)
            if after < before:
                rest = Basis(basis.T[after:], basis.inverse[:, after:], basis.importance[after:])
                pruned = Components(*rest.matrices(layer), rest.statistics(self.statistics.of(path)))
                changed[path], self.pruned[path] = (basis.first(after), None, c), pruned.times(c)
            else:
                changed[path] = basis, _new(layer, after - before, generator), c
        self._apply(changed)

    def restore(self, bases: Mapping[str, Basis]) -> None:
        """Bring back what the last prune removed, behind the components of `bases`."""
        changed: dict[str, Change] = {}
        for path, pruned in self.pruned.items():
            layer, rank = self.layers[path], pruned.A.shape[0]
            c = rank_change_factor(layer.rank, layer.rank + rank, self.scaling_exponent)
            changed[path] = bases.get(path) or identity_basis(layer), pruned.times(c), c
        self._apply(changed)
        self.pruned = {}

    def sort(self, bases: Mapping[str, Basis]) -> None:
        """Put the components of layers in the order of `bases`; the function stays as it is."""
        self._apply({path: (basis, None, 1.0) for path, basis in bases.items()})

    def _apply(self, changed: Mapping[str, Change]) -> None:
        new: dict[nn.Parameter, tuple[Tensor, dict[str, Tensor]]] = {}
        fitting: dict[str, Change] = {}
        for path, (basis, added, c) in changed.items():
            layer = self.layers[path]
            resized, sums = change(layer, self.statistics.of(path), basis, added, self.optimizer, c)
            if all_finite(matrix for matrix, _ in resized.values()):
                self.statistics.sums[path], fitting[path] = sums, changed[path]
                new |= resized
            else:
                self.pruned.pop(path, None)
        self.optimizer.resize(new)
        for path, (basis, added, c) in fitting.items():
            self.layers[path].scaling /= c**2
            self.layers[path].collect_statistics()
            self.ranks[path] = self.layers[path].rank
            self.rule.resized(self.layers[path], basis, 0 if added is None else added.A.shape[0])


def _new(layer: LowRankLayer, rank: int, generator: torch.Generator) -> Components:
    """Return components that change nothing yet: A drawn as at the start, B zero."""
    return Components(
        draw_A(rank, layer.in_features, generator).to(layer.lora_A),
        layer.lora_B.new_zeros(layer.out_features, rank),
        torch.zeros(2 * rank + 1, rank, device=layer.lora_A.device),
    )
