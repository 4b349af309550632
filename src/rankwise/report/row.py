"""One line of the table: a task and a method, over its seeds."""

from dataclasses import dataclass
from typing import Literal

from rankwise.report.stats import LEVEL, Estimate

REFERENCE = "full"
"""The method the others are compared with."""

Verdict = Literal["shown", "open", "not shown"]


@dataclass(frozen=True)
class Row:
    """A task and a method.

    Attributes:
        score: of `metric`, over seeds; `scores` by seed.
        more: further metrics' means.
        difference: to full fine-tuning, over the seeds both have (`differences` by seed); None for full itself and where full is missing.
        p: exact McNemar probability against full (over seeds: sign test by example), Holm-corrected over the table.
        p_seeds: paired t test over seeds against full, Holm-corrected likewise; None with one seed.
        only_this, only_full: validation rows on which this method, or full, is right more often.
        trainable, share: trained parameters, and their share of the plain model's.
        adapter_params: of the LoRA matrices alone.
        mean_rank: over layers, the median over seeds.
        rows_per_second, peak_mb, train_seconds: medians over seeds; None where they would mislead.
        speeds: rows/s of each seed.
        memory: peak tensor MB by kind, `total` among them; None where it wasn't followed by kind.
        n_train, n_validation: rows.
    """

    task: str
    method: str
    metric: str
    score: Estimate
    scores: dict[int, float]
    more: dict[str, float]
    difference: Estimate | None
    differences: dict[int, float]
    p: float | None
    p_seeds: float | None
    only_this: int | None
    only_full: int | None
    trainable: int
    share: float
    adapter_params: int
    mean_rank: float | None
    rows_per_second: float | None
    speeds: list[float]
    peak_mb: float | None
    memory: dict[str, float] | None
    train_seconds: float
    n_train: int
    n_validation: int

    @property
    def verdict(self) -> Verdict | None:
        """Is a difference to full fine-tuning shown? Over rows and over seeds, both corrected; `open` where only one of the two tests says
        so. With one seed the rows alone decide. None where there is nothing to compare with."""
        if self.p is None:
            return None
        tests = [p < 1 - LEVEL for p in (self.p, self.p_seeds) if p is not None]
        return "shown" if all(tests) else "open" if any(tests) else "not shown"
