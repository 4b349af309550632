"""Every constant of adaptive rank. None is meant to be set by a user; studies vary them (`studies/ablations.py`).

A user chooses between two sets of them: `preferring("accuracy")`, the default, and `preferring("size")`.

"Gain" is the mean held-out loss without any adapter minus the mean loss with all of them. The start rank and the scaling belong to the
layers: see `lora/scaling.py`. The evidence for each value is in studies/LOG.md ("Constants and their evidence").
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rankwise.config import Preference
from rankwise.errors import RankwiseError

CONFIDENCE = 1.645
"""Standard errors of a one-sided 95 % bound."""


@dataclass(frozen=True)
class RankConfig:
    """Constants of a `RankController`.

    Attributes:
        tolerance: loss increase that is negligible, as a share of the gain, when layers grow and when a finished adapter is compressed.
        prune_at: share of the training steps after which layers are pruned → tolerance then, as a share of the gain.
        by_size: a prune check goes through smaller sizes of the adapter and takes the smallest that rows don't miss
            (`accept_size`); otherwise it makes a prune that follows from trial prunings (`accept_prune_after_trial`).
        bound_limit: the upper bound of a smaller size's loss increase is within this many times the tolerance.
        size_step: each size that such a check knows has this share of the components of the one before it.
        least_rank: mean rank of the layers that such a check keeps at least. Half-way rows tend to prefer any smaller adapter.
        prune_all: where it isn't sure that the adapters gain anything, the last check may prune all of them.
        undo_at: share of the training steps after which the last prune is undone, if training hasn't made up for it by then.
        grow_at: shares of the training steps after which layers may grow.
        confidence: standard errors in a bound. 1.645: one-sided 95 %.
        decay: of the statistics, a step.
        memory: steps that the statistics reach back, 1 / (1 - decay). Only the last prune check comes before step 2 · memory. With fewer
            than `memory` steps left after it, the noise tolerance is smaller.
        noise_cap: upper limit of the noise tolerance, one standard error of the held-out loss, as a share of the gain.
        prior_sd: standard deviation, before any measurement, of the logarithm of (loss increase / expected loss increase).
        least_factor: within the noise tolerance, the loss increase counts as at least this many times the expected one.
        trials: trial prunings that a check evaluates, at most.
        trial_limit: a trial of more than this many times the proposal's share is repeated with a smaller one.
        trial_factor: the next trial is then this many times the proposal.
        smallest_prune: share of all components below which a prune isn't evaluated.
        held_out_share: share of the training rows that are held out, at most.
        fewest_rows: training rows below which no rank is found.
        fewest_steps: training steps below which no rank is found.
        safe_rank: rank of every layer in such a training.
        scaling_exponent: s falls with this power of a layer's rank when it is resized.

    The values here prefer size; `PREFERRED` has those that prefer accuracy.

    Raises:
        ValueError: no prune check, or a check outside the training.
    """

    tolerance: float = 0.02
    prune_at: Mapping[float, float] = field(default_factory=lambda: {0.4: 0.002, 0.8: 0.02})
    by_size: bool = False
    bound_limit: float = 3.0
    size_step: float = 2**-0.25
    least_rank: float = 3.0
    prune_all: bool = True
    undo_at: float = 0.9
    grow_at: tuple[float, ...] = (0.1, 0.2, 0.3)
    confidence: float = CONFIDENCE
    decay: float = 0.98
    memory: float = 50
    noise_cap: float = 0.2
    prior_sd: float = 2.0
    least_factor: float = 2.0
    trials: int = 3
    trial_limit: float = 8.0
    trial_factor: float = 4.0
    smallest_prune: float = 1 / 16
    held_out_share: float = 0.1
    fewest_rows: int = 500
    fewest_steps: int = 60
    safe_rank: int = 8
    scaling_exponent: float = 1.0

    def __post_init__(self) -> None:
        if not self.prune_at:
            raise ValueError(
                "prune_at is empty: the last prune check ends the use of held-out rows. Give one."
            )
        outside = [share for share in (*self.prune_at, *self.grow_at, self.undo_at) if not 0 < share <= 1]
        if outside:
            raise ValueError(
                f"Checks come after a share of the steps between 0 and 1, not after {outside[0]:g}."
            )


def preferring(prefer: Preference) -> RankConfig:
    """Return the constants for a preference.

    Args:
        prefer: `accuracy`: as accurate as without pruning. `size`: as small as held-out rows allow within their noise.

    Raises:
        RankwiseError: there is no such preference.
    """
    if prefer not in PREFERRED:
        raise RankwiseError(f"`prefer=` takes accuracy or size, not {prefer!r}.")
    return PREFERRED[prefer]


PREFERRED: Mapping[Preference, RankConfig] = {
    "accuracy": RankConfig(prune_at={0.5: 0.015}, by_size=True, prune_all=False, undo_at=0.6, noise_cap=0.0),
    "size": RankConfig(),
}
"""accuracy: one prune check, half-way, which keeps whatever held-out rows can't show to be negligible; half of the training follows it."""
