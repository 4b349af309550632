"""The losses that objectives are made of, by example: functions of logits and labels.

cross_entropy            logits [rows, classes]   labels int64 [rows]
binary_cross_entropy     logits [rows, labels]    labels float [rows, labels] of 0s and 1s
squared_error            logits [rows, 1]         labels float [rows]
token_cross_entropy      logits [rows, tokens, classes]   labels int64 [rows, tokens], -100 where there is none
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from scipy.optimize import minimize_scalar
from torch import Tensor

from rankwise.tasks.labels import IGNORED


def cross_entropy(
    logits: Float[Tensor, "rows outputs"],
    labels: Int64[Tensor, "rows"],
    weights: Float[Tensor, "outputs"] | None = None,
) -> Float[Tensor, "rows"]:
    """Return the cross-entropy of each row; `weights` multiply the loss of a class's rows."""
    return F.cross_entropy(logits, labels, weight=weights, reduction="none")


def binary_cross_entropy(
    logits: Float[Tensor, "rows outputs"],
    labels: Float[Tensor, "rows outputs"],
    weights: Float[Tensor, "outputs"] | None = None,
) -> Float[Tensor, "rows"]:
    """Return each row's binary cross-entropy, the mean over labels; `weights` multiply what a row that has a label adds."""
    each = F.binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype), pos_weight=weights, reduction="none"
    )
    return each.mean(dim=1)


def squared_error(logits: Float[Tensor, "rows 1"], labels: Float[Tensor, "rows"]) -> Float[Tensor, "rows"]:
    """Return the squared error of each row."""
    return (logits.squeeze(1) - labels).square()


def token_cross_entropy(
    logits: Float[Tensor, "rows tokens classes"], labels: Int64[Tensor, "rows tokens"]
) -> Float[Tensor, "rows"]:
    """Return the mean cross-entropy over each row's labelled tokens; NaN for a row that has none. One row at a time, to save memory."""
    rows = [
        F.cross_entropy(row[labelled := label != IGNORED].float(), label[labelled])
        for row, label in zip(logits, labels, strict=True)
    ]
    return torch.stack(rows) if rows else logits.new_zeros(0)


def calibrated(
    losses: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    logits: Float[Tensor, "rows outputs"],
    labels: Tensor,
    weights: Float[Tensor, "outputs"] | None = None,
) -> Float[Tensor, "rows"]:
    """Return the loss of each row at the one temperature that minimises the mean over all rows.

    So how confident a classifier is hardly counts. The loss then measures what accuracy measures, without accuracy's steps. A temperature
    above three isn't taken: it would hide what the classifier gets wrong, as for a rare class.
    Source: Guo et al. 2017, section 4.2.

    Args:
        losses: (logits, labels, weights) → loss of each row.
        logits: of all rows.
        labels: of the same rows.
        weights: for `losses`.
    """
    logits, weights = logits.double(), None if weights is None else weights.double()

    def mean(log_scale: float) -> float:
        return losses(logits * math.exp(log_scale), labels, weights).mean().item()

    bounds = (-math.log(3.0), 4.0)
    log_scale = minimize_scalar(mean, bounds=bounds, method="bounded").x  # pyright: ignore[reportAttributeAccessIssue]
    return losses(logits * math.exp(log_scale), labels, weights)
