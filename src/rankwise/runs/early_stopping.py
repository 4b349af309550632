"""Early stopping (`--patience`): a run ends when the loss on rows held out of training hasn't improved for some epochs."""

import numpy as np
from sklearn.model_selection import train_test_split

from rankwise.errors import RankwiseError
from rankwise.run_folder import RunFolder
from rankwise.runs.evaluation import labels
from rankwise.seeding import stream_seed
from rankwise.tasks.encoding import Encoded
from rankwise.tasks.objectives import Objective

HELD_OUT = 0.1
"""Fraction of the training rows that are held out, of which `MOST_ROWS` at most."""
MOST_ROWS = 1000


def hold_out(rows: Encoded, objective: Objective, seed: int) -> tuple[Encoded, Encoded]:
    """Split off held-out rows, stratified by label; with one seed they are the same for every method.

    A label of a single row stays in training. Where there are fewer rows to hold out than labels, they are drawn from all labels alike.

    Returns:
        The rows that are left to train on, and the held-out ones.

    Raises:
        RankwiseError: every label has a single row.
    """
    strata = objective.strata(labels(rows))
    _, stratum, counts = np.unique(strata, return_inverse=True, return_counts=True)
    single = counts[stratum] < 2
    several = np.flatnonzero(~single)
    if len(several) < 2:
        raise RankwiseError(
            f"{len(rows):,} training rows are too few to hold some out for `patience=`: no label has two. Leave it out."
        )
    n = min(MOST_ROWS, max(1, round(len(several) * HELD_OUT)))
    strata = strata[several]
    all_can_have_one = len(np.unique(strata)) <= min(n, len(several) - n)
    kept, held = train_test_split(
        several,
        test_size=n,
        random_state=stream_seed(seed, "held out") % 2**32,
        stratify=strata if all_can_have_one else None,
    )
    kept = np.concatenate([kept, np.flatnonzero(single)])
    return rows.select(np.sort(kept)), rows.select(np.sort(held))


class EarlyStopping:
    """Decides when to stop.

    Args:
        patience: evaluations without improvement, or None to never stop.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.losses: list[float] = []

    def add(self, loss: float) -> None:
        """Takes the held-out loss after an epoch."""
        self.losses.append(loss)

    @property
    def stop(self) -> bool:
        """Whether the smallest loss is `patience` evaluations old."""
        if self.patience is None or not self.losses:
            return False
        return len(self.losses) - 1 - self.losses.index(min(self.losses)) >= self.patience

    def load(self, folder: RunFolder, step: int) -> None:
        """Reads the losses up to `step` from the log of an interrupted run."""
        for line in folder.read_steps():
            if "held_out_loss" in line and line["step"] <= step:
                self.add(line["held_out_loss"])
