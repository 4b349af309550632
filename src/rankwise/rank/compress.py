"""Prune a finished adapter, all at once: the smallest size whose loss increase held-out rows and statistics together allow.

all components ─► half of them ─► half of these ─► … until the loss increase is too high ─► bisection between the last two
"""

from dataclasses import replace

import torch

from rankwise.errors import RankwiseError
from rankwise.rank.controller import RankController
from rankwise.rank.decision import Decision
from rankwise.rank.evidence import LossIncrease, accept_prune_by_both, accept_prune_by_rows
from rankwise.rank.pruning_rule import ranks_without

NARROW = 16
"""Bisection stops when the two sizes are closer than one in so many."""


@torch.no_grad()
def compress(controller: RankController) -> list[Decision]:
    """Prune an adapter to the smallest size that is tolerated, in place.

    Args:
        controller: of the adapter, with `statistics.sums` filled and held-out losses of rows that weren't trained on.

    Raises:
        RankwiseError: fewer than two held-out rows have a finite loss.

    Returns:
        The curve: a decision for each size evaluated, in the order of evaluation.
    """
    config, made = controller.config, len(controller.decisions)
    bases = controller.bases()
    order = controller.order(bases)
    whole, without_adapters = controller.held_out.begin()
    if len(whole) < 2:
        raise RankwiseError(
            "The adapter can't be compressed: fewer than two held-out rows have a finite loss with it."
        )
    gain = LossIncrease.of(without_adapters - whole)
    limit, total = config.tolerance * max(gain.mean, 0.0), sum(importance for importance, _ in order)

    def decide(kept: int) -> Decision:
        removed = order[: len(order) - kept]
        ranks = ranks_without(bases, removed)
        if kept == 0:
            accepted = accept_prune_by_rows(gain, limit, config.confidence)
            return controller.decision("prune", accepted, gain, limit, ranks)
        losses = controller.held_out.losses_with(controller.matrices(bases, ranks))
        increase = LossIncrease.of(losses - whole)
        share = sum(importance for importance, _ in removed) / total if total else 0.0
        accepted = accept_prune_by_both(increase, limit, share * gain.mean, config.prior_sd)
        return controller.decision("prune", accepted, increase, limit, ranks, share * gain.mean)

    def passes(kept: int) -> bool:
        point = decide(kept)
        if point.accepted:  # the ranks of this size; layers are resized once, at the end
            after = {path: rank for path, (_, rank) in point.changes.items()}
            point = replace(point, ranks=controller.ranks | after)
        controller.decisions.append(point)
        return point.accepted

    enough, too_few = len(order), 0  # the fewest components that pass, and the most that don't
    if not order or passes(0):
        enough = 0
    while enough > 1 and too_few == 0 and passes(enough // 2):
        enough //= 2
    too_few = enough // 2 if enough > 1 else 0
    while enough - too_few > max(1, enough // NARROW):
        middle = (enough + too_few) // 2
        enough, too_few = (middle, too_few) if passes(middle) else (enough, middle)
    ranks, before = ranks_without(bases, order[: len(order) - enough]), controller.ranks
    changes = {path: (before[path], rank) for path, rank in ranks.items() if before[path] != rank}
    controller.resizer.resize(changes, bases, controller.steps_taken)
    return controller.decisions[made:]
