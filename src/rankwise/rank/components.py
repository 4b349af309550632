"""The components of one LoRA layer: the basis in which they are independent and have a worth, and what a change of basis or of their
number does to the optimizer's state.

    moments of z and dz, A, B ─► Basis: A' = T·A, B' = B·T⁻¹, the most worth first ─► change: some of them stay, others come beside

What worth means, and why this basis, stands at the head of `rank.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.lora.layer import LoRALinear, replace_value


@dataclass(frozen=True)
class Basis:
    """A layer's components, the most worth first: A' = T·A and B' = B·T⁻¹ leave B·A as it is.

    Attributes:
        T: [kept, rank], float64; all components are kept to begin with.
        inverse: T⁻¹, or of it the columns that are kept.
        worth: of each component, in units that all layers of a model share.
    """

    T: Float[Tensor, "kept rank"]
    inverse: Float[Tensor, "rank kept"]
    worth: Float[Tensor, " kept"]

    def first(self, rank: int) -> "Basis":
        """The components worth most."""
        return Basis(self.T[:rank], self.inverse[:, :rank], self.worth[:rank])

    def matrices(self, layer: LoRALinear) -> tuple[Tensor, Tensor]:
        """A' and B'."""
        A = self.T @ layer.lora_A.detach().double()
        B = layer.lora_B.detach().double() @ self.inverse
        return A.to(layer.lora_A.dtype), B.to(layer.lora_B.dtype)

    def moments(self, moments: Tensor) -> Tensor:
        """The second moments of z' and dz'."""
        rank = self.T.shape[1]
        zz, dd = moments[:rank].double(), moments[rank : 2 * rank].double()
        rows = torch.cat([self.T @ zz @ self.T.t(), self.inverse.t() @ dd @ self.inverse]).to(moments.dtype)
        tokens = moments[-1:, :1].expand(1, rows.shape[1])  # rank 0 has no room for them
        return torch.cat([rows, tokens])


def find_basis(layer: LoRALinear, moments: Float[Tensor, "moments rank"]) -> Basis:
    """The components of a layer, from the second moments of z and dz.

    With C = E[z·zᵀ] and the singular value decomposition B·C^½ = U·S·Vᵀ, T = D·Vᵀ·C^-½ makes the components of z uncorrelated and the
    columns of B orthogonal. The diagonal D gives each component the layer's own ratio ‖A‖ / ‖B‖, so that neither factor learns faster
    than before.
    """
    rank, device = layer.rank, layer.lora_A.device
    moments = moments.double()
    tokens = moments[-1, 0].clamp_min(1.0)
    zz, dd = moments[:rank] / tokens, moments[rank : 2 * rank] / tokens
    A, B = layer.lora_A.detach().double(), layer.lora_B.detach().double()
    if not B.any() or not zz.any():
        identity = torch.eye(rank, dtype=torch.float64, device=device)
        return Basis(identity, identity, torch.zeros(rank, dtype=torch.float64, device=device))
    values, vectors = torch.linalg.eigh(zz)
    values = values.clamp_min(
        1e-6 * values[-1]
    )  # what z doesn't reach has no effect, but must not divide by zero
    root, unroot = (vectors * values ** (0.5 * sign) @ vectors.t() for sign in (1, -1))
    V = torch.linalg.svd(B @ root, full_matrices=False).Vh
    T, inverse = V @ unroot, root @ V.t()
    a, b = (T @ A).norm(dim=1), (B @ inverse).norm(dim=0)
    scale = (A.norm() / B.norm() * b.clamp_min(1e-3 * b.max()) / a).sqrt()
    T, inverse = scale[:, None] * T, inverse / scale
    worth = tokens * torch.einsum("ij,jk,ik->i", T, zz, T) * torch.einsum("ji,jk,ki->i", inverse, dd, inverse)
    order = worth.argsort(descending=True, stable=True)
    return Basis(T[order], inverse[:, order], worth[order])


class Components(NamedTuple):
    """Components of a layer on their own: kept aside, or new."""

    A: Float[Tensor, "rank d_in"]
    B: Float[Tensor, "d_out rank"]
    moments: Float[Tensor, "moments rank"]

    def times(self, c: float) -> "Components":
        """The same function where s is divided by c²: z grows with A, and dz = s·dy·B falls."""
        rank = self.A.shape[0]
        zz, dd, tokens = self.moments[:rank], self.moments[rank : 2 * rank], self.moments[2 * rank :]
        return Components(c * self.A, c * self.B, torch.cat([c**2 * zz, dd / c**2, tokens]))


@runtime_checkable
class OptimizerState(Protocol):
    """What the controller asks of an optimizer: `optim.Update` has it, `TorchOptimizer` gives it to any of torch's."""

    def state(self, parameter: nn.Parameter, /) -> dict[str, Tensor]:
        """Moments in the parameter's shape, and whatever else."""
        ...

    def resize(self, new: Mapping[nn.Parameter, tuple[Tensor, dict[str, Tensor]]], /) -> None:
        """Gives parameters other values, of other shapes, and the state that goes with them."""
        ...


class NoOptimizer:
    """No optimizer, seen as `OptimizerState`: for an adapter that isn't being trained."""

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {}

    def resize(self, new: Mapping[nn.Parameter, tuple[Tensor, dict[str, Tensor]]]) -> None:
        for parameter, (value, _) in new.items():
            replace_value(parameter, value)


class TorchOptimizer:
    """An optimizer of torch's, seen as `OptimizerState`."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {k: v for k, v in self.optimizer.state.get(parameter, {}).items() if isinstance(v, Tensor)}

    @torch.no_grad()
    def resize(self, new: Mapping[nn.Parameter, tuple[Tensor, dict[str, Tensor]]]) -> None:
        for parameter, (value, state) in new.items():
            replace_value(parameter, value)
            if state:
                self.optimizer.state[parameter].update(state)


def change(
    layer: LoRALinear,
    moments: Tensor,
    basis: Basis,
    added: Components | None,
    optimizer: OptimizerState,
    c: float = 1.0,
) -> tuple[dict[nn.Parameter, tuple[Tensor, dict[str, Tensor]]], Tensor]:
    """A layer with the components of `basis` (some or all of its own, in their order), followed by others.

    Args:
        layer: left as it is.
        moments: second moments of its z and dz.
        basis: what of it stays.
        added: what comes beside it, for s / c².
        optimizer: holds the state of its A and B.
        c: A and B are multiplied by it, for a layer that takes s / c² as its scaling: the function stays as it is.

    Returns:
        For `OptimizerState.resize`: A and B with their optimizer state; and the new second moments.
    """
    rank = layer.rank
    zz, dd = moments[:rank].double(), moments[rank : 2 * rank].double()
    # A' = c·T·A and B' = c·B·T⁻¹, so the gradients follow as T⁻ᵀ·G_A / c and G_B·Tᵀ / c; over rank, dz correlates the one and z the other.
    state_A = _carry(optimizer.state(layer.lora_A), basis.inverse.t() / c, dd, layer.lora_A.shape)
    state_B = {k: v.t() if v.ndim == 2 else v for k, v in optimizer.state(layer.lora_B).items()}
    state_B = _carry(state_B, basis.T / c, zz, layer.lora_B.t().shape)
    A, B, moments = Components(*basis.matrices(layer), basis.moments(moments)).times(c)
    if added is not None:
        A, B = torch.cat([A, added.A]), torch.cat([B, added.B], dim=1)
        state_A, state_B = (_extend(state, added.A.shape[0]) for state in (state_A, state_B))
        moments = _beside(moments, added.moments)
    state_B = {k: v.t().contiguous() if v.ndim == 2 else v for k, v in state_B.items()}
    return {layer.lora_A: (A, state_A), layer.lora_B: (B.contiguous(), state_B)}, moments


SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
"""State that holds second moments, by torch's names for it."""


def _carry(
    state: dict[str, Tensor],
    P: Float[Tensor, "new rank"],
    moments: Float[Tensor, "rank rank"],
    shape: torch.Size,
) -> dict[str, Tensor]:
    """An optimizer's state of a parameter whose gradient G [rank, d] becomes P·G.

    First moments follow as gradients do. Second moments are E[(Σₖ Pᵢₖ·Gₖ)²] with the correlations over k that `moments` tells. What isn't
    in the parameter's shape stays.
    """
    spread = moments.diagonal().sqrt().clamp_min(1e-30)
    correlation = moments / (spread[:, None] * spread)
    correlation.fill_diagonal_(1.0)
    carried: dict[str, Tensor] = {}
    for key, value in state.items():
        if value.shape != shape:
            carried[key] = value
        elif key in SQUARES:
            terms = P[:, :, None] * value.double().sqrt()  # [new, rank, d]
            squares = torch.einsum("ikd,kl,ild->id", terms, correlation, terms)
            carried[key] = squares.clamp_min(0.0).to(value.dtype)
        else:
            carried[key] = (P @ value.double()).to(value.dtype)
    return carried


def _extend(state: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """State [rank, d] with that many rows more: no momentum yet, and the layer's usual second moments."""
    extended: dict[str, Tensor] = {}
    for key, value in state.items():
        if value.ndim == 2:
            usual = (
                value.mean(dim=0, keepdim=True)
                if key in SQUARES and len(value)
                else value.new_zeros(1, value.shape[1])
            )
            value = torch.cat([value, usual.expand(rows, -1)])
        extended[key] = value
    return extended


def _beside(moments: Tensor, other: Tensor) -> Tensor:
    """Second moments of two sets of components that are taken as uncorrelated."""
    n, m = moments.shape[1], other.shape[1]
    zz = torch.block_diag(moments[:n], other[:m])
    dd = torch.block_diag(moments[n : 2 * n], other[m : 2 * m])
    tokens = torch.cat([moments[-1], other[-1]]).max()
    return torch.cat([zz, dd, tokens.expand(1, n + m)])


def as_it_is(layer: LoRALinear) -> Basis:
    """All components in the basis they are in."""
    one = torch.eye(layer.rank, dtype=torch.float64, device=layer.lora_A.device)
    return Basis(one, one, one.new_zeros(layer.rank))
