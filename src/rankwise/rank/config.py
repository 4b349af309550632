"""Every constant of adaptive rank, with its meaning, its unit and its evidence.

None is meant to be set by a user. Studies vary them (`studies/ablations.py`). "Gain" is the mean held-out loss without any adapter minus
the mean loss with all of them. The start rank and the scaling belong to the layers: see `lora/scaling.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

CONFIDENCE = 1.645
"""Standard errors of a one-sided 95 % bound."""


@dataclass(frozen=True)
class RankConfig:
    """Constants of a `RankController`.

    Attributes:
        tolerance: loss increase that is negligible, as a share of the gain, when layers grow and when a finished adapter is compressed.
            Evidence: the trials of 1, 2, 3 and 5 % in studies/ablations.parquet and studies/schedules.parquet.
        prune_at: share of the training steps after which layers are pruned → tolerance then, as a share of the gain. The first prune
            takes only what is clearly unused, because a component of little importance may become important later. After the last,
            training still learns most of the loss increase again. Evidence: studies/ablations.parquet ("cut at …", "in three steps").
        grow_at: shares of the training steps after which layers may grow. Evidence: planted ranks need it (studies/planted.parquet);
            no check on the seven tasks asked for it.
        confidence: standard errors in a bound. 1.645: one-sided 95 %.
        decay: of the statistics, a step. Not varied in any stored trial.
        memory: steps that the statistics reach back, 1 / (1 - decay). A prune check before step 2 · memory is left out, unless it is the
            last. After the last one, fewer than `memory` steps left make the noise tolerance smaller. Evidence: short trainings in
            studies/ablations.parquet ("as a long training, however short").
        noise_cap: upper limit of the noise tolerance, as a share of the gain. The noise tolerance is one standard error of the held-out
            loss (the one-standard-error rule, Breiman et al. 1984). Evidence: studies/ablations.parquet ("2 % of the gain however
            little the rows tell") compares with 0; other values were not tried in a stored trial.
        prior_sd: standard deviation, before any measurement, of the logarithm of (loss increase / expected loss increase): a factor
            of seven either way. Evidence: studies/loss_increase.parquet, where the ratio is between 0 and 7; one of thirty in short
            trainings is not stored.
        least_factor: within the noise tolerance, the loss increase counts as at least this many times the expected one. There held-out
            rows often prefer the smaller adapter, by chance or because it is less restless. Evidence: studies/ablations.parquet
            ("statistics times …").
        trials: trial prunings that a check evaluates, at most. Not varied in any stored trial.
        trial_limit: a trial that is more than this many times the proposal says too little about it, and is repeated. Not varied in
            any stored trial.
        trial_factor: the next trial is then this many times the proposal. Its loss increase stands out from noise better than the
            proposal's own. Not varied in any stored trial.
        smallest_prune: share of all components; to prune fewer isn't worth an evaluation. Not varied in any stored trial.
        fewest_rows: training rows below which no rank is found. Not varied in any stored trial.
        fewest_steps: training steps below which no rank is found. Not varied in any stored trial.
        safe_rank: rank of every layer in such a training. Evidence: 500 rows in studies/data_size.parquet.
        scaling_exponent: s falls with this power of a layer's rank when it is resized; the start is `lora.scaling.ALPHA` / rank in any
            case. Evidence: exponents 0 and ½ in studies/ablations-cuda.parquet ("s as at the start", "s = alpha/√r").

    Raises:
        ValueError: no prune check, or a check outside the training.
    """

    tolerance: float = 0.02
    prune_at: Mapping[float, float] = field(default_factory=lambda: {0.4: 0.002, 0.8: 0.02})
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
    fewest_rows: int = 500
    fewest_steps: int = 60
    safe_rank: int = 8
    scaling_exponent: float = 1.0

    def __post_init__(self) -> None:
        if not self.prune_at:
            raise ValueError(
                "prune_at is empty: the last prune check ends the use of held-out rows. Give one."
            )
        outside = [share for share in (*self.prune_at, *self.grow_at) if not 0 < share <= 1]
        if outside:
            raise ValueError(
                f"Checks come after a share of the steps between 0 and 1, not after {outside[0]:g}."
            )
