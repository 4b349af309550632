"""One row of the results table: a task and a method, over its seeds."""

from dataclasses import dataclass
from typing import Literal

from rankwise.report.stats import LEVEL, Estimate

REFERENCE = "full"
"""The method that others are compared with."""

Verdict = Literal["shown", "open", "not shown"]


@dataclass(frozen=True)
class Row:
    """A task and a method.

    Attributes:
        task: its name.
        method: its name.
        metric: the headline metric.
        score: mean of `metric` over seeds.
        scores: seed → score.
        other_metrics: name → mean over seeds.
        difference: score minus full fine-tuning's, over shared seeds; None for full itself and where full is missing.
        differences: seed → difference.
        p_rows: exact McNemar test against full over validation rows, Holm-corrected over the table.
        p_seeds: paired t test against full over seeds, Holm-corrected likewise; None with one seed.
        only_this: validation rows on which only this method is right (in more seeds than full).
        only_full: validation rows on which only full is right.
        trainable: number of trained parameters.
        trainable_share: their share of the plain model's parameters.
        adapter_params: entries of the LoRA matrices.
        mean_rank: mean over layers, median over seeds.
        rows_per_second: training speed, median over seeds; None where it would mislead.
        speeds: training speed of each seed, rows/s.
        peak_mb: peak memory in MB, median over seeds; None where it would mislead.
        memory: peak tensor memory by kind in MB, `total` included; None where it wasn't recorded by kind.
        train_seconds: training time, median over seeds.
        n_train: training rows.
        n_validation: validation rows.
    """

    task: str
    method: str
    metric: str
    score: Estimate
    scores: dict[int, float]
    other_metrics: dict[str, float]
    difference: Estimate | None
    differences: dict[int, float]
    p_rows: float | None
    p_seeds: float | None
    only_this: int | None
    only_full: int | None
    trainable: int
    trainable_share: float
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
        """Whether a difference from full fine-tuning is shown.

        `shown` takes both tests, over rows and over seeds; `open` means that one of them is significant. With one seed the test over
        rows decides alone. None where there is nothing to compare with.
        """
        if self.p_rows is None:
            return None
        significant = [p < 1 - LEVEL for p in (self.p_rows, self.p_seeds) if p is not None]
        return "shown" if all(significant) else "open" if any(significant) else "not shown"
