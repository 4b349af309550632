"""What a classifier's outputs stand for: one class, a set of labels, or a number.

    classification   logits [rows, classes]   labels int64 [rows]              the highest logit
    multi-label      logits [rows, labels]    labels float32 [rows, labels]    every logit above 0
    regression       logits [rows, 1]         labels float32 [rows]            the logit itself

The labels' own type and shape say which it is, as in Transformers, so whoever holds rows and logits needs nothing else. The losses that
fit are in `losses`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64

from rankwise.config import ProblemName

Labels = Int64[np.ndarray, "rows"] | Float32[np.ndarray, "rows"] | Float32[np.ndarray, "rows labels"]


@dataclass(frozen=True)
class Problem:
    """One kind of problem.

    Attributes:
        name: as in `--problem`.
        problem_type: what Transformers' configs call it.
        predict: logits [rows, outputs] → predictions, in the labels' form.
        metrics: of a table of one's own, the headline first.
    """

    name: ProblemName
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"]
    predict: Callable[[np.ndarray], np.ndarray]
    metrics: tuple[str, ...]


CLASSIFICATION = Problem(
    "classification",
    "single_label_classification",
    lambda logits: logits.argmax(axis=1),
    ("accuracy", "mcc"),
)
MULTI_LABEL = Problem(
    "multi-label",
    "multi_label_classification",
    lambda logits: (logits > 0).astype(np.float32),
    ("micro_f1", "macro_f1", "accuracy"),
)
REGRESSION = Problem(
    "regression",
    "regression",
    lambda logits: logits[:, 0].astype(np.float32),
    ("pearson", "spearman"),
)
PROBLEMS: dict[str, Problem] = {p.name: p for p in (CLASSIFICATION, MULTI_LABEL, REGRESSION)}


def problem_of(labels: Labels) -> Problem:
    """The problem that labels of this type and shape belong to."""
    if labels.ndim == 2:
        return MULTI_LABEL
    return REGRESSION if labels.dtype.kind == "f" else CLASSIFICATION


def of_config(config: object) -> Problem:
    """The problem that a Transformers config says a model is for; one output alone is a number."""
    said = getattr(config, "problem_type", None)
    found = next((p for p in PROBLEMS.values() if p.problem_type == said), None)
    return found or (REGRESSION if getattr(config, "num_labels", 2) == 1 else CLASSIFICATION)


def strata(labels: Labels) -> np.ndarray:
    """What a split keeps the shares of, int64 [rows]: the classes. Numbers and sets of labels are one stratum."""
    return labels if problem_of(labels) is CLASSIFICATION else np.zeros(len(labels), dtype=np.int64)
