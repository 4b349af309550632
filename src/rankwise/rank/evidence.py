"""Held-out evidence: losses of held-out examples with other adapters in place, the bounds drawn from them, and what they accept.

Losses are compared example by example: the same examples before and after a change. The mean of the differences is the loss increase
(Δloss). Its standard error comes from their spread, so how hard the examples are drops out.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.lora.low_rank import LowRankLayer
from rankwise.rank.config import CONFIDENCE

Losses = Callable[[], Tensor | tuple[Tensor, Tensor]]
"""Loss of each held-out example, [examples], without gradients, in eval mode. Any loss may be used. Where it leaves something out that
training has to learn (a classifier's confidence), the plain loss of each example may stand behind it: (losses, plain losses)."""
Matrices = dict[str, tuple[Tensor, Tensor]]
"""Module path → A [rank, d_in] and B [d_out, rank]."""
LEVEL = 0.95
"""Level of the upper bound in `factor_bound`."""


class HeldOutTest:
    """Evaluates held-out examples with other matrices in some layers.

    Attributes:
        losses: loss of each held-out example with the model as it is.
        plain: plain loss of each example that was evaluated last; the loss itself where there is no other.
        begun: losses and, below them, plain losses of all examples, as the last check has begun.
        plain_gain: what the adapters gained then by the plain loss.
        rows_seen: examples evaluated so far, over all passes.
        compared: which examples take part in the check that is going on; None for all.
    """

    def __init__(self, layers: Mapping[str, LowRankLayer], losses: Losses) -> None:
        self.layers, self.losses = layers, losses
        self.rows_seen = 0
        self.compared: Tensor | None = None
        self.plain, self.begun = torch.empty(0), torch.empty(2, 0)
        self.plain_gain = LossIncrease(0.0, 0.0, 0)

    def begin(self) -> tuple[Float[Tensor, " examples"], Float[Tensor, " examples"]]:
        """Begin a check: return the loss of each example with the adapters as they are, and without any.

        Examples for which one of the two isn't finite are left out of the whole check.
        """
        self.compared = None
        losses, plain = self.losses_with({}), self.plain
        self.begun = torch.stack([losses, plain])
        without_adapters = self.losses_without_adapters()
        finite = losses.isfinite() & without_adapters.isfinite()
        plain_gain = (self.plain - plain)[finite]
        self.plain_gain = LossIncrease.of(plain_gain) if len(plain_gain) > 1 else LossIncrease(0.0, 0.0, 0)
        if finite.all():
            return losses, without_adapters
        self.compared = finite
        self.plain = self.plain[finite]
        return losses[finite], without_adapters[finite]

    def begin_comparison(self) -> Float[Tensor, "2 examples"]:
        """Begin a check that doesn't ask for the gain: return losses and, below them, plain losses with the adapters as they are.

        Examples for which one of the two isn't finite are left out of the whole check.
        """
        self.compared = None
        now = torch.stack([self.losses_with({}), self.plain])
        finite = now.isfinite().all(dim=0)
        if not finite.all():
            self.compared = finite
        return now[:, finite]

    @contextmanager
    def replaced(self, matrices: Matrices) -> Iterator[None]:
        """Have these matrices in place of the layers' own, for a block of code."""
        kept = {path: (layer.lora_A.data, layer.lora_B.data) for path, layer in self.layers.items()}
        try:
            for path, (A, B) in matrices.items():
                self.layers[path].lora_A.data, self.layers[path].lora_B.data = A, B
            yield
        finally:
            for path, (A, B) in kept.items():
                self.layers[path].lora_A.data, self.layers[path].lora_B.data = A, B

    def losses_with(self, matrices: Matrices) -> Float[Tensor, " examples"]:
        """Return the loss of each example with these matrices in place of the layers' own, in float64 on the CPU."""
        with self.replaced(matrices), _uncompiled():
            found = self.losses()
        losses, plain = found if isinstance(found, tuple) else (found, found)
        self.rows_seen += len(losses)
        losses, self.plain = (
            x.cpu().double() if self.compared is None else x.cpu().double()[self.compared]
            for x in (losses, plain)
        )
        return losses

    def losses_without_adapters(self) -> Float[Tensor, " examples"]:
        """Return the loss of each example with rank 0 in every layer."""
        return self.losses_with(
            {path: (layer.lora_A[:0], layer.lora_B[:, :0]) for path, layer in self.layers.items()}
        )


def _uncompiled() -> AbstractContextManager[None]:
    """Have compiled models run as they are written: each rank would be compiled, and torch.compile gives up after a few."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


class LossIncrease(NamedTuple):
    """A loss increase on held-out examples.

    Attributes:
        mean: over the examples.
        error: standard error of the mean.
        rows: how many examples.
    """

    mean: float
    error: float
    rows: int

    @property
    def finite(self) -> bool:
        """Whether it is a number that a decision may rest on."""
        return math.isfinite(self.mean) and math.isfinite(self.error)

    @classmethod
    def of(cls, differences: Float[Tensor, " examples"]) -> "LossIncrease":
        """Return the increase that examples' losses after a change minus before it show."""
        return cls(*mean_and_error(differences), len(differences))


class Allowance(NamedTuple):
    """Loss increase that a prune may cause.

    Attributes:
        gain: mean held-out loss without adapters minus with them.
        share: tolerance, as a share of the gain.
        noise: noise tolerance, in units of the loss.
    """

    gain: float
    share: float
    noise: float

    def share_to_prune(self, factor: float, least_factor: float) -> float:
        """Return the share of all importance that may be pruned.

        Args:
            factor: upper bound of loss increase / expected loss increase; the expected one is share of importance · gain.
            least_factor: lower limit of the factor within the noise tolerance.
        """
        return max(self.share / factor, self.noise / self.gain / max(factor, least_factor))


def mean_and_error(values: Float[Tensor, " examples"]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


def factor_bound(increase: float, error: float, expected: float, prior_sd: float) -> float:
    """Return the upper 95 % bound of loss increase / expected loss increase.

    Before the measurement, the logarithm of the ratio is normal around 0 with standard deviation `prior_sd`. The measurement is normal
    around the true increase with its standard error. The posterior is summed up on a grid.

    Args:
        increase: measured on held-out rows.
        error: its standard error.
        expected: by the statistics.
        prior_sd: of the logarithm.
    """
    grid = torch.linspace(-5.0, 7.0, 1201, dtype=torch.float64)
    off = (increase - expected * grid.exp()) / max(error, 1e-12)
    posterior = torch.softmax(-0.5 * (off.square() + (grid / prior_sd).square()), dim=0).cumsum(0)
    return grid[min(int((posterior < LEVEL).sum()), len(grid) - 1)].exp().item()


# Acceptance rules: is a proposal carried out?


def accept_addition(increase: LossIncrease, limit: float, confidence: float = CONFIDENCE) -> bool:
    """Return whether components are to be added: the lower bound of the loss increase without them is above the limit."""
    return increase.mean - confidence * increase.error > limit


def accept_prune_by_rows(increase: LossIncrease, limit: float, confidence: float = CONFIDENCE) -> bool:
    """Return whether held-out rows alone allow a prune: the upper bound of its loss increase is within the limit."""
    return increase.mean + confidence * increase.error <= limit


def accept_size(
    increase: LossIncrease, limit: float, bound_limit: float, confidence: float = CONFIDENCE
) -> bool:
    """Return whether a smaller size of an adapter will do: rows see no loss increase above the limit, and that isn't chance.

    Args:
        increase: on held-out rows.
        limit: loss increase that is negligible.
        bound_limit: of the increase's upper bound; few rows, whose bounds are wide, accept nothing.
        confidence: standard errors in a bound.
    """
    return increase.mean <= limit and accept_prune_by_rows(increase, bound_limit, confidence)


def accept_prune_by_both(increase: LossIncrease, limit: float, expected: float, prior_sd: float) -> bool:
    """Return whether rows and statistics together allow a prune.

    Neither the measured loss increase nor the bound on the expected one may be above the limit.
    """
    bound = expected * factor_bound(increase.mean, increase.error, expected, prior_sd)
    return max(increase.mean, bound) <= limit


def accept_prune_after_trial(increase: LossIncrease, limit: float) -> bool:
    """Return whether a prune that follows a trial pruning is carried out: its own loss increase is within the limit."""
    return increase.mean <= limit
