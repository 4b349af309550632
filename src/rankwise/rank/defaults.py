"""What a training takes where nothing is given: constants, pruning rule and class of the controller.

`rankwise.fit` and `rankwise train` have no arguments for these, because nobody should have to set them. A study replaces them for a
block of code, and everything that is trained inside it takes the replacements:

    with replaced(config=RankConfig(grow_at=()), rule="magnitude"):
        rankwise.cli.main(["train", "reviews.csv"])
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from rankwise.lora.low_rank import LowRankLayer
from rankwise.rank.components import OptimizerState
from rankwise.rank.config import RankConfig, preferring
from rankwise.rank.controller import RankController
from rankwise.rank.evidence import Losses
from rankwise.rank.guard import SameEverywhere
from rankwise.rank.pruning_rule import PruningRule


@dataclass(frozen=True)
class Defaults:
    """What a training takes where nothing is given.

    Attributes:
        config: constants, in the place of those of a preference.
        rule: a name in `PRUNING_RULES`, or a rule.
        controller: called with the arguments of `RankController`.
    """

    config: RankConfig | None = None
    rule: PruningRule | str = "importance"
    controller: Callable[..., RankController] = RankController


_now = Defaults()


def current() -> Defaults:
    """Return the defaults in force."""
    return _now


@contextmanager
def replaced(**changes: Any) -> Iterator[None]:
    """Replace some of the `Defaults` for a block of code, in all threads of this process."""
    global _now
    before, _now = _now, replace(_now, **changes)
    try:
        yield
    finally:
        _now = before


def config_for(layers: Sequence[LowRankLayer]) -> RankConfig:
    """Return the constants in force for layers whose ranks are to be found: those of what they prefer, if none replace them."""
    return _now.config or preferring(layers[0].prefer)


def make_controller(
    model: nn.Module,
    losses: Losses,
    steps: int,
    optimizer: torch.optim.Optimizer | OptimizerState,
    *,
    seed: int = 0,
    same_everywhere: SameEverywhere | None = None,
) -> RankController:
    """Return a controller by the defaults in force; the arguments are those of `RankController`."""
    return _now.controller(
        model,
        losses,
        steps,
        optimizer,
        seed=seed,
        config=_now.config,
        rule=_now.rule,
        same_everywhere=same_everywhere,
    )
