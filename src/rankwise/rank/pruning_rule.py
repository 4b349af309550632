"""Which components are pruned first: the rule that orders them, and a registry of rules by name.

    statistics of a layer ─► its components, the most important first ─► components of all layers, the least important first
                                                                            │ proposal: without the first of these
                                                                            ▼
                                                          held-out rows decide how many (`evidence`, `controller`)

The default is `ImportanceRule`. A rule of your own is a small class: subclass `ScoreRule`, give each component a score, and pass it as
`RankController(…, rule=MyRule())` or `RankCallback(…, rule=MyRule())`, or register it by name in `PRUNING_RULES`.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.lora.low_rank import LowRankLayer
from rankwise.rank.components import Basis, find_basis

Order = Sequence[tuple[float, str]]
"""(importance, module path) of every component, the first to be pruned first."""


class Proposal(NamedTuple):
    """A prune that is proposed.

    Attributes:
        ranks: module path → rank without the components.
        share: of all importance, that the components have.
        components: how many are pruned.
    """

    ranks: dict[str, int]
    share: float
    components: int


@runtime_checkable
class PruningRule(Protocol):
    """Finds the components of layers and orders them. What it proposes is tested on held-out rows."""

    def components(self, layer: LowRankLayer, statistics: Float[Tensor, "statistics rank"]) -> Basis:
        """Return a layer's components, the most important first.

        Args:
            layer: left as it is.
            statistics: second moments of its z and dz, see `Statistics`.
        """
        ...

    def order(self, bases: Mapping[str, Basis], layers: Mapping[str, LowRankLayer]) -> Order:
        """Return the components of all layers, the first to be pruned first; those of one layer in the reverse of their own order."""
        ...

    def resized(self, layer: LowRankLayer, basis: Basis, added: int) -> None:
        """Follow a resize: the layer has the components of `basis` now, and `added` new ones behind them."""
        ...


class ImportanceRule:
    """Orders components by importance for their parameters (`find_basis`).

    Removing component i raises the loss by about ½·E[(z_i·dz_i)²] ≈ ½·E[z_i²]·E[dz_i²] a token: the empirical Fisher information of a
    gate on it (Theis et al. 2018), with its two factors taken as independent (as in K-FAC, Martens & Grosse 2015). The code leaves out
    the ½ and multiplies by the number of tokens, because only shares are used.
    """

    def components(self, layer: LowRankLayer, statistics: Float[Tensor, "statistics rank"]) -> Basis:
        return find_basis(layer, statistics)

    def order(self, bases: Mapping[str, Basis], layers: Mapping[str, LowRankLayer]) -> Order:
        ranked: list[tuple[float, float, str]] = []
        for path, basis in bases.items():
            parameters = layers[path].in_features + layers[path].out_features
            ranked += [(value / parameters, value, path) for value in basis.importance.tolist()]
        return [(importance, path) for _, importance, path in sorted(ranked)]

    def resized(self, layer: LowRankLayer, basis: Basis, added: int) -> None:
        """Do nothing: the rule has no state."""


class ScoreRule(ImportanceRule):
    """Another score in the place of importance, for the components that `find_basis` gives. Subclass it and write `score`."""

    def components(self, layer: LowRankLayer, statistics: Float[Tensor, "statistics rank"]) -> Basis:
        basis = find_basis(layer, statistics)
        score = self.score(layer, basis, statistics)
        order = score.argsort(descending=True, stable=True)
        return Basis(basis.T[order], basis.inverse[:, order], score[order])

    @abstractmethod
    def score(
        self, layer: LowRankLayer, basis: Basis, statistics: Float[Tensor, "statistics rank"]
    ) -> Float[Tensor, " rank"]:
        """Return a score of each component, float64, the higher the longer it stays; in units that all layers share."""


PRUNING_RULES: dict[str, Callable[[], PruningRule]] = {"importance": ImportanceRule}
"""Name → what makes a rule."""


def rule_named(rule: "PruningRule | str") -> PruningRule:
    """Return the rule of a name, or the rule that is given.

    Raises:
        ValueError: no rule has this name.
    """
    if not isinstance(rule, str):
        return rule
    if rule not in PRUNING_RULES:
        raise ValueError(f"There is no pruning rule {rule!r}. Known: {', '.join(sorted(PRUNING_RULES))}.")
    return PRUNING_RULES[rule]()


def least_important(order: Order, bases: Mapping[str, Basis], share: float) -> Proposal:
    """Propose to prune the first components that together have at most a share of all importance."""
    shares = torch.tensor([importance for importance, _ in order], dtype=torch.float64).cumsum(0)
    shares = shares / shares[-1]
    count = int((shares <= share).sum())
    return Proposal(ranks_without(bases, order[:count]), shares[count - 1].item() if count else 0.0, count)


SIZES = 11
"""How many smaller sizes of an adapter are evaluated at most."""


def smaller_sizes(components: int, step: float = 2**-0.5) -> list[int]:
    """Return how many components each smaller size of an adapter keeps, the largest first; none keeps nothing.

    Args:
        components: how many the adapter has.
        step: each size has this share of the components of the one before it.
    """
    kept = [round(components * step**i) for i in range(1, SIZES + 1)]
    return [n for n in dict.fromkeys(kept) if 0 < n < components]


def ranks_without(bases: Mapping[str, Basis], removed: Order) -> dict[str, int]:
    """Return the ranks of the layers without some components; those of a layer go from its last to its first."""
    gone = Counter(path for _, path in removed)
    return {path: len(basis.importance) - gone[path] for path, basis in bases.items()}
