"""One row of the results table: a task and a method, over its seeds."""

from dataclasses import dataclass
from typing import Literal

from rankwise.report.stats import LEVEL, Estimate
from rankwise.report.units import better

REFERENCE = "full"
"""The method that others are compared with, whatever options it has: `full`, `full:lr=5e-5`."""


def is_full(method: str) -> bool:
    """Return whether a method is full fine-tuning."""
    return method.partition(":")[0] == REFERENCE


Verdict = Literal["shown", "open", "not shown"]


@dataclass(frozen=True)
class Row:
    """A task and a method.

    Attributes:
        task: its name.
        method: its name.
        metric: the headline metric.
        reference: the others of the task are compared with this one.
        folds: of the cross-validation; its folds then take the place of seeds everywhere below. None where there is none.
        score: mean of `metric` over seeds.
        scores: seed → score.
        other_metrics: name → mean over seeds.
        difference: score minus full fine-tuning's, over shared seeds; None for full itself and where full is missing.
        differences: seed → difference.
        p_rows: exact McNemar test against full over validation rows, Holm-corrected over the table.
        p_seeds: paired t test against full over seeds, Holm-corrected likewise; None with one seed.
        only_this: validation rows on which only this method is right (in more seeds than full).
        only_full: validation rows on which only full is right.
        trainable: number of trained parameters, mean over seeds.
        trainable_range: the same of the seeds with the fewest and the most; methods that find ranks differ between seeds.
        trainable_share: share of `trainable` in the plain model's parameters.
        adapter_params: entries of the LoRA matrices, mean over seeds.
        adapter_params_range: the same of the seeds with the fewest and the most.
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
    reference: bool
    folds: int | None
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
    trainable_range: tuple[int, int]
    trainable_share: float
    adapter_params: int
    adapter_params_range: tuple[int, int]
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
        rows decides alone. It counts where it points to the side on which the metric is. None where there is nothing to compare with.
        """
        if self.p_rows is None:
            return None
        significant = [self.p_rows < 1 - LEVEL and not self.rows_contradict]
        significant += [] if self.p_seeds is None else [self.p_seeds < 1 - LEVEL]
        return "shown" if all(significant) else "open" if any(significant) else "not shown"

    @property
    def rows_contradict(self) -> bool:
        """Whether the method with the better metric is the one that is right on fewer rows, by a significant test.

        The test over rows counts right and wrong alike. F1, Matthews correlation and correlations weigh rows differently.
        """
        if self.p_rows is None or self.p_rows >= 1 - LEVEL or self.difference is None:
            return False
        ahead = better(self.metric) * self.difference.mean
        return ahead * ((self.only_this or 0) - (self.only_full or 0)) <= 0
