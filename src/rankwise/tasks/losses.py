"""The loss that fits the labels (see `problems`), by example, and its class weights in training.

labels int64 [rows]              cross-entropy
labels float32 [rows, labels]    binary cross-entropy, the mean over labels
labels float32 [rows]            squared error
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from rankwise.errors import RankwiseError, nearest
from rankwise.tasks.problems import MULTI_LABEL, REGRESSION, problem_of


def example_losses(
    logits: Float[Tensor, "rows outputs"], labels: Tensor, weights: Float[Tensor, "outputs"] | None = None
) -> Float[Tensor, "rows"]:
    """The loss of each row.

    Args:
        logits: float32 or wider.
        labels: int64 [rows], float [rows, outputs] of 0s and 1s, or float [rows].
        weights: of classes they multiply the loss of a class's rows; of labels, what the rows that have a label add to the loss.
    """
    if labels.ndim == 2:
        each = F.binary_cross_entropy_with_logits(
            logits, labels.to(logits.dtype), pos_weight=weights, reduction="none"
        )
        return each.mean(dim=1)
    if labels.is_floating_point():
        return (logits.squeeze(1) - labels).square()
    return F.cross_entropy(logits, labels, weight=weights, reduction="none")


def calibrated_losses(
    logits: Float[Tensor, "rows outputs"], labels: Tensor, weights: Float[Tensor, "outputs"] | None = None
) -> Float[Tensor, "rows"]:
    """The loss of each row at the temperature that is best for all of them together (Guo et al. 2017, section 4.2); of numbers the loss
    as it is.

    It is blind to how sure a classifier is of itself, and sees what accuracy sees, without accuracy's steps.
    """
    if labels.is_floating_point() and labels.ndim == 1:
        return example_losses(logits, labels)
    logits, weights = logits.double(), None if weights is None else weights.double()

    def mean(log_scale: float) -> float:
        return example_losses(logits * math.exp(log_scale), labels, weights).mean().item()

    log_scale = minimize_scalar(mean, bounds=(-4.0, 4.0), method="bounded").x  # pyright: ignore[reportAttributeAccessIssue]
    return example_losses(logits * math.exp(log_scale), labels, weights)


def mean_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean loss of logits [rows, outputs] against labels, unweighted."""
    return example_losses(torch.from_numpy(logits), torch.from_numpy(labels)).mean().item()


def class_weights(spec: str, names: Sequence[str], labels: np.ndarray) -> Float[Tensor, "outputs"]:
    """Weights of the training loss.

    Args:
        spec: `balanced`, or `name=weight,…`, where classes that are not named have 1. Balanced makes all classes count the same:
            n / (classes · rows of the class), as scikit-learn; of a label, rows without it / rows with it.
        names: of the classes, in the order of their ids.
        labels: of the training rows.

    Raises:
        RankwiseError: regression, an unknown name, no number above 0, or a class that no training row has.
    """
    problem = problem_of(labels)
    if problem is REGRESSION:
        raise RankwiseError("--class-weights is for classes, and this is regression. Leave it out.")
    if spec.strip() != "balanced":
        return torch.tensor(_given(spec, names), dtype=torch.float32)
    with_it = labels.sum(axis=0) if problem is MULTI_LABEL else np.bincount(labels, minlength=len(names))
    without = len(labels) - with_it
    for rows, lacking in ((with_it, "no training row has it"), (without, "every training row has it")):
        if not rows.all():
            raise RankwiseError(
                f"--class-weights balanced has no weight for {names[int(np.argmin(rows))]!r}: {lacking}. Give weights by name."
            )
    weights = without / with_it if problem is MULTI_LABEL else len(labels) / (len(names) * with_it)
    return torch.tensor(weights, dtype=torch.float32)


def _given(spec: str, names: Sequence[str]) -> list[float]:
    weights = dict.fromkeys(names, 1.0)
    for part in spec.split(","):
        name, equals, text = part.strip().rpartition("=")
        if not equals:
            raise RankwiseError(
                f"--class-weights takes balanced, or weights by name such as {names[0]}=2, not {part.strip()!r}."
            )
        if name not in weights:
            raise RankwiseError(f"--class-weights: there is no class {name!r}.{nearest(name, names)}")
        try:
            weights[name] = float(text)
        except ValueError:
            weights[name] = 0.0
        if not 0 < weights[name] < float("inf"):
            raise RankwiseError(
                f"--class-weights: the weight of {name} must be a number above 0; it is {text!r}."
            )
    return list(weights.values())
