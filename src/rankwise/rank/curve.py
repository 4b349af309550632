"""The curve of an adapter: how much loss each smaller size of it costs, measured on rows that it wasn't trained on.

    components of all layers, the least important first ─► about 12 sizes ─► Δloss ± standard error, scores

A smaller adapter is the first components of each layer. So any point of the curve is taken from the adapter's file afterwards, without
training and without data (`adapters/curve_file.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import RankwiseError
from rankwise.rank.controller import RankController
from rankwise.rank.evidence import LossIncrease
from rankwise.rank.pruning_rule import ranks_without, smaller_sizes

Judge = Callable[[], tuple[Tensor, Mapping[str, float]]]
"""Returns the loss of each row with the model as it is, and its scores by metric."""


@dataclass(frozen=True)
class CurvePoint:
    """One size of an adapter.

    Attributes:
        params: entries of all A and B.
        ranks: module path → rank.
        loss_increase: mean over rows of the loss with this size minus the loss with the whole adapter.
        error: its standard error.
        scores: metric → score on the same rows.
    """

    params: int
    ranks: dict[str, int]
    loss_increase: float
    error: float
    scores: dict[str, float]


@dataclass(frozen=True)
class Curve:
    """The sizes of an adapter, the largest first.

    Attributes:
        points: the first is the whole adapter, the last has no component.
        gain: mean loss without the adapter minus with it.
        rows: how many were evaluated.
    """

    points: tuple[CurvePoint, ...]
    gain: float
    rows: int

    def within_params(self, most: int) -> CurvePoint:
        """Return the largest size of at most `most` parameters.

        Raises:
            RankwiseError: no size with a component has so few.
        """
        fitting = [point for point in self.points if 0 < point.params <= most]
        if not fitting:
            least = min(point.params for point in self.points if point.params)
            raise RankwiseError(
                f"`max_params={most}` is too small: the smallest size measured has {least:,}."
            )
        return fitting[0]

    def within_loss(self, share: float) -> CurvePoint:
        """Return the smallest size before the first whose loss increase is above a share of the gain.

        Args:
            share: of the gain, 0.01 for 1 %.
        """
        found = self.points[0]
        for point in self.points:
            if point.params and point.loss_increase > share * max(self.gain, 0.0):
                break
            found = point if point.params else found
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the curve as plain values for JSON."""
        return {"rows": self.rows, "gain": self.gain, "points": [vars(point) for point in self.points]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Curve":
        """Return what `to_json` has written."""
        return cls(tuple(CurvePoint(**point) for point in stored["points"]), stored["gain"], stored["rows"])


@torch.no_grad()
def measure(controller: RankController, judge: Judge) -> Curve:
    """Measure the sizes of an adapter that is trained, after `controller.sort()`. The layers stay as they are.

    Args:
        controller: of the adapter.
        judge: evaluates rows that weren't trained on, the same at each call.
    """
    bases = controller.bases()
    order = controller.order(bases)
    whole, scores = judge()
    points = [CurvePoint(_params(controller, controller.ranks), controller.ranks, 0.0, 0.0, dict(scores))]
    without = whole  # losses of the last size, which has no component
    for kept in [*smaller_sizes(len(order)), *[0] * bool(order)]:
        smaller = ranks_without(bases, order[: len(order) - kept])
        ranks = controller.ranks | smaller
        with controller.held_out.replaced(controller.matrices(bases, smaller)):
            losses, scores = judge()
        increase = LossIncrease.of(losses.double().cpu() - whole.double().cpu())
        points.append(
            CurvePoint(_params(controller, ranks), ranks, increase.mean, increase.error, dict(scores))
        )
        without = losses
    return Curve(tuple(points), (without - whole).double().mean().item(), len(whole))


def _params(controller: RankController, ranks: Mapping[str, int]) -> int:
    return sum(
        rank * (controller.layers[path].in_features + controller.layers[path].out_features)
        for path, rank in ranks.items()
    )
