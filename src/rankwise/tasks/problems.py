"""Until its callers hold an objective."""

import numpy as np

from rankwise.tasks.objectives import OBJECTIVES, Labels, Objective, of_config

PROBLEMS = OBJECTIVES
__all__ = ["PROBLEMS", "Labels", "of_config", "problem_of", "strata"]


def problem_of(labels: Labels) -> Objective:
    if labels.ndim == 2:
        return OBJECTIVES["multi-label"]
    return OBJECTIVES["regression" if labels.dtype.kind == "f" else "classification"]


def strata(labels: Labels) -> np.ndarray:
    return problem_of(labels).strata(labels)
