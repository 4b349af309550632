"""The components of one LoRA layer: the basis in which they don't overlap, their importance, and how the optimizer's state follows them.

    statistics of z and dz, A, B ─► Basis: A' = T·A, B' = B·T⁻¹, the most important first ─► change: some stay, others are added

A component is a row of A with its column of B. The same update can be written with A' = T·A and B' = B·T⁻¹ for any invertible T.
`find_basis` takes the T for which components of z are uncorrelated and the columns of B' orthogonal. Importance is explained at
`pruning_rule.ImportanceRule` and in docs/method.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.lora.low_rank import LowRankLayer, replace_value
from rankwise.rank.statistics import all_finite


@dataclass(frozen=True)
class Basis:
    """A layer's components, the most important first: A' = T·A and B' = B·T⁻¹ leave B·A as it is.

    Attributes:
        T: [kept, rank], float64; `find_basis` keeps all.
        inverse: [rank, kept]: the columns of T⁻¹ that belong to the components kept.
        importance: [kept], in units that all layers of a model share.
    """

    T: Float[Tensor, "kept rank"]
    inverse: Float[Tensor, "rank kept"]
    importance: Float[Tensor, " kept"]

    def first(self, rank: int) -> "Basis":
        """Return the `rank` most important components."""
        return Basis(self.T[:rank], self.inverse[:, :rank], self.importance[:rank])

    def matrices(self, layer: LowRankLayer) -> tuple[Tensor, Tensor]:
        """Return A' [kept, d_in] and B' [d_out, kept], in the layer's dtype."""
        A, B = self.T @ precise(layer.lora_A), precise(layer.lora_B) @ self.inverse
        return A.to(layer.lora_A), B.to(layer.lora_B)

    def statistics(
        self, statistics: Float[Tensor, "statistics rank"]
    ) -> Float[Tensor, "statistics_kept kept"]:
        """Return the second moments of z' and dz', from those of z and dz."""
        rank = self.T.shape[1]
        zz, dd = precise(statistics[:rank]), precise(statistics[rank : 2 * rank])
        rows = torch.cat([self.T @ zz @ self.T.t(), self.inverse.t() @ dd @ self.inverse])
        rows = rows.to(statistics).nan_to_num()  # what the dtype can't hold is its largest number
        tokens = statistics[-1:, :1].expand(1, rows.shape[1])  # of rank 0 there is no entry to hold them
        return torch.cat([rows, tokens])


WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that have no float64."""


def precise(tensor: Tensor) -> Tensor:
    """Return a tensor's values in float64, on the CPU where its device has none."""
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor).double()


def find_basis(layer: LowRankLayer, statistics: Float[Tensor, "statistics rank"]) -> Basis:
    """Return the components of a layer, the most important first.

    With C = E[z·zᵀ] and the singular value decomposition B·C^½ = U·S·Vᵀ, T = D·Vᵀ·C^-½ makes the components of z uncorrelated and the
    columns of B orthogonal. The diagonal D gives each component the layer's own ratio ‖A‖ / ‖B‖, so that neither factor learns faster
    than before. The importance of component i is tokens · E[z'_i²] · E[dz'_i²].

    Everything returned is finite. Where A, B or z are zero, or too small or too large to compute with, that is `identity_basis`.

    Args:
        layer: left as it is.
        statistics: second moments of its z and dz; statistics = 2·rank + 1.
    """
    rank, statistics = layer.rank, precise(statistics)
    tokens = statistics[-1, 0].clamp_min(1.0)
    zz, dd = statistics[:rank] / tokens, statistics[rank : 2 * rank] / tokens
    A, B = precise(layer.lora_A), precise(layer.lora_B)
    if not zz.any() or not all(matrix.norm() > 0 for matrix in (A, B)):
        return identity_basis(layer)
    values, vectors = torch.linalg.eigh(zz)
    if values[-1] < SMALLEST:  # rounding leaves less than nothing where z is zero
        return identity_basis(layer)
    values = values.clamp_min(1e-6 * values[-1])  # directions that z never takes must not divide by zero
    root, unroot = (vectors * values ** (0.5 * sign) @ vectors.t() for sign in (1, -1))
    outputs = B @ root
    if not all_finite([outputs]):
        return identity_basis(layer)
    V = torch.linalg.svd(outputs, full_matrices=rank > B.shape[0]).Vh  # of a high rank, all directions
    T, inverse = V @ unroot, root @ V.t()
    a, b = (T @ A).norm(dim=1), (B @ inverse).norm(dim=0)
    # components that do nothing, as in a padded layer, must not divide by zero
    scale = (A.norm() / B.norm() * b.clamp_min(1e-3 * b.max()) / a.clamp_min(1e-6 * a.max())).sqrt()
    T, inverse = scale[:, None] * T, inverse / scale
    importance = (
        tokens * torch.einsum("ij,jk,ik->i", T, zz, T) * torch.einsum("ji,jk,ki->i", inverse, dd, inverse)
    )
    order = importance.argsort(descending=True, stable=True)
    basis = Basis(T[order], inverse[:, order], importance[order])
    return basis if all_finite((basis.T, basis.inverse, basis.importance)) else identity_basis(layer)


SMALLEST = 1e-290
"""E[z²] that can be divided by, after it is multiplied by 1e-6."""


class Components(NamedTuple):
    """Components outside a layer: pruned, or new."""

    A: Float[Tensor, "rank d_in"]
    B: Float[Tensor, "d_out rank"]
    statistics: Float[Tensor, "statistics rank"]

    def fits(self, layer: LowRankLayer) -> bool:
        """Return whether the shapes are those of components of a layer."""
        rank = self.A.shape[0]
        shapes = [(rank, layer.in_features), (layer.out_features, rank), (2 * rank + 1, rank)]
        return [tuple(tensor.shape) for tensor in self] == shapes

    def times(self, c: float) -> "Components":
        """Return the same function for a layer whose s is divided by c²: z grows with A, and dz = s·dy·B falls."""
        rank = self.A.shape[0]
        zz, dd, tokens = self.statistics[:rank], self.statistics[rank : 2 * rank], self.statistics[2 * rank :]
        return Components(c * self.A, c * self.B, torch.cat([c**2 * zz, dd / c**2, tokens]).nan_to_num())


@runtime_checkable
class OptimizerState(Protocol):
    """What the controller needs of an optimizer. `engine.optim.Update` has it; `torch_optimizer.TorchOptimizer` wraps
    torch's."""

    def state(self, parameter: nn.Parameter, /) -> dict[str, Tensor]:
        """Return the state of a parameter by name: moments in the parameter's shape, and anything else."""
        ...

    def resize(self, new: Mapping[nn.Parameter, tuple[Tensor, dict[str, Tensor]]], /) -> None:
        """Give parameters other values, of any shape, and the state that goes with them."""
        ...


class NoOptimizer:
    """`OptimizerState` without an optimizer, for an adapter that isn't being trained."""

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {}

    def resize(self, new: Mapping[nn.Parameter, tuple[Tensor, dict[str, Tensor]]]) -> None:
        for parameter, (value, _) in new.items():
            replace_value(parameter, value)


def change(
    layer: LowRankLayer,
    statistics: Float[Tensor, "statistics rank"],
    basis: Basis,
    added: Components | None,
    optimizer: OptimizerState,
    c: float = 1.0,
) -> tuple[dict[nn.Parameter, tuple[Tensor, dict[str, Tensor]]], Tensor]:
    """Return a layer's A and B with the components of `basis`, followed by others.

    Args:
        layer: left as it is.
        statistics: second moments of its z and dz.
        basis: the components that stay, in this order.
        added: components behind them, made for s / c².
        optimizer: holds the state of A and B.
        c: factor on A and B, for a layer whose scaling becomes s / c²; the function then stays as it is.

    Returns:
        A and B with their optimizer state, for `OptimizerState.resize`; and the new statistics. State and statistics are finite.
    """
    rank = layer.rank
    zz, dd = precise(statistics[:rank]), precise(statistics[rank : 2 * rank])
    # A' = c·T·A and B' = c·B·T⁻¹, so gradients become T⁻ᵀ·G_A / c and G_B·Tᵀ / c. Rows of G_A correlate as dz does, columns of G_B as z.
    state_A = _carry(optimizer.state(layer.lora_A), basis.inverse.t() / c, dd, layer.lora_A.shape)
    state_B = {k: v.t() if v.ndim == 2 else v for k, v in optimizer.state(layer.lora_B).items()}
    state_B = _carry(state_B, basis.T / c, zz, layer.lora_B.t().shape)
    A, B, statistics = Components(*basis.matrices(layer), basis.statistics(statistics)).times(c)
    if added is not None:
        A, B = torch.cat([A, added.A]), torch.cat([B, added.B], dim=1)
        state_A, state_B = (_extend(state, added.A.shape[0]) for state in (state_A, state_B))
        statistics = _block_diagonal(statistics, added.statistics)
    state_B = {k: v.t().contiguous() if v.ndim == 2 else v for k, v in state_B.items()}
    return {layer.lora_A: (A, state_A), layer.lora_B: (B.contiguous(), state_B)}, statistics


SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
"""Torch's names for optimizer state that holds second moments."""


def _carry(
    state: dict[str, Tensor],
    P: Float[Tensor, "new rank"],
    products: Float[Tensor, "rank rank"],
    shape: torch.Size,
) -> dict[str, Tensor]:
    """Return the optimizer's state of a parameter whose gradient G [rank, d] becomes P·G.

    First moments change as gradients do. Second moments become E[(Σₖ Pᵢₖ·Gₖ)²]. The correlations over k in it are those of `products`,
    the sums of products of z, or of dz. State that isn't in the parameter's shape stays. What is carried is finite, even if `state` isn't.
    """
    # Of components whose z or dz is zero, rounding leaves squares below zero, and products too large for their squares.
    spread = products.diagonal().clamp_min(0.0).sqrt().clamp_min(1e-30)
    correlation = products / (spread[:, None] * spread)
    correlation = torch.where(correlation.abs() < 1.01, correlation, 0.0)  # NaN is not below it, either
    correlation.fill_diagonal_(1.0)
    carried: dict[str, Tensor] = {}
    for key, value in state.items():
        if value.shape != shape:
            carried[key] = value
            continue
        finite = precise(value.nan_to_num())
        if key in SQUARES:
            terms = P[:, :, None] * finite.sqrt()  # [new, rank, d]
            rows = torch.einsum("ikd,kl,ild->id", terms, correlation, terms).clamp_min(0.0)
        else:
            rows = P @ finite
        carried[key] = rows.to(value).nan_to_num()
    return carried


def _extend(state: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Return state [rank, d] with so many more rows: first moments are zero, second moments the layer's mean."""
    extended: dict[str, Tensor] = {}
    for key, value in state.items():
        if value.ndim == 2:
            usual = (
                value.mean(dim=0, keepdim=True).nan_to_num()
                if key in SQUARES and len(value)
                else value.new_zeros(1, value.shape[1])
            )
            value = torch.cat([value, usual.expand(rows, -1)])
        extended[key] = value
    return extended


def _block_diagonal(statistics: Tensor, other: Tensor) -> Tensor:
    """Return the statistics of two sets of components together, taken as uncorrelated."""
    n, m = statistics.shape[1], other.shape[1]
    zz = torch.block_diag(statistics[:n], other[:m])
    dd = torch.block_diag(statistics[n : 2 * n], other[m : 2 * m])
    tokens = torch.cat([statistics[-1], other[-1]]).max()
    return torch.cat([zz, dd, tokens.expand(1, n + m)])


def identity_basis(layer: LowRankLayer) -> Basis:
    """Return all components of a layer as they are, without an importance."""
    one = torch.eye(layer.rank, dtype=torch.float64, device=precise(layer.lora_A[:0]).device)
    return Basis(one, one, one.new_zeros(layer.rank))
