"""The LoRA layer: a frozen Linear with a trainable low-rank update beside it (Hu et al. 2021, section 4.1).

              ┌────────── W0 (frozen) ──────────┐
    x [n, d_in]                                 + ─► y [n, d_out]        y = x·W0ᵀ + b + s·(x·Aᵀ)·Bᵀ
              └─► A [r, d_in] ─► z ─► B [d_out, r] ─ ·s ┘

A starts random and B at zero, so adapting a model doesn't change it. Forward and backward are one autograd function. Backward
computes dx through W0 but never dW0, and keeps only x and z = x·Aᵀ.

Adaptive rank needs statistics of z and of dz, the gradient at z (`rank/statistics.py`). Backward computes both anyway. It returns
their second moments as the "gradient" of a zero tensor. So they arrive beside the gradients of A and B, and add up over the
micro-batches of a batch in the same way.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rankwise.errors import RankwiseError
from rankwise.lora.low_rank import LowRankLayer


def draw_A(rank: int, d_in: int, generator: torch.Generator | None = None) -> Float[Tensor, "rank d_in"]:
    """Draw rows of A as they start, on the CPU.

    Source: Kaiming-uniform with a = √5, as in loralib's `layers.py`.
    """
    return torch.empty(rank, d_in).uniform_(-1, 1, generator=generator) / math.sqrt(d_in)


class LoRALinear(LowRankLayer, nn.Module):
    """A frozen Linear (or GPT-2's Conv1D, which stores its weight transposed) plus s·B·A.

    Attributes:
        weight: the frozen W0 as the base layer stores it: [d_out, d_in], or [d_in, d_out] where `fan_in_fan_out`.
        bias: the frozen bias [d_out], or None.
        lora_A: [rank, d_in], float32 whatever W0's dtype.
        lora_B: [d_out, rank], likewise.
        scaling: s.
        merged: whether W0 holds the update now.

    A state dict holds s, too, as `lora_scaling`: without it, matrices say nothing about the update. It may have another rank than the
    layer, which then takes that rank.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    lora_A: nn.Parameter
    lora_B: nn.Parameter

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        *,
        scaling: float,
        fan_in_fan_out: bool = False,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Take over `base`'s weight and bias (no copy) and freeze them.

        Args:
            base: the layer to adapt: anything with a 2-D `weight` and a `bias`.
            rank: r, 1 or more.
            scaling: s in W0 + s·B·A (alpha/r as published).
            fan_in_fan_out: the weight is stored as [d_in, d_out] (Conv1D).
            dropout: probability on the adapter's input, in training only.
            generator: draws A; on the CPU.

        Raises:
            ValueError: the rank is below 1.

        Source: initialisation as in loralib `layers.py` (A by `draw_A`, B zero).
        """
        super().__init__()
        self.fan_in_fan_out = fan_in_fan_out
        self.weight, self.bias = cast(nn.Parameter, base.weight), cast("nn.Parameter | None", base.bias)
        d_in, d_out = self.in_features, self.out_features
        if rank < 1:
            raise ValueError(f"rank {rank} doesn't fit a layer of {d_in} × {d_out}: 1 or more")
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)

        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        self.lora_A = nn.Parameter(draw_A(rank, d_in, generator).to(self.weight.device, dtype))
        self.lora_B = nn.Parameter(torch.zeros(d_out, rank, dtype=dtype, device=self.weight.device))
        self.scaling = scaling
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.merged = False
        self.register_load_state_dict_pre_hook(_take_rank)

    @property
    def in_features(self) -> int:
        return self.weight.shape[0 if self.fan_in_fan_out else 1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[1 if self.fan_in_fan_out else 0]

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        W = self.weight.t() if self.fan_in_fan_out else self.weight
        if self.merged or self.rank == 0:
            return F.linear(x, W, self.bias)
        base_is_trained = W.requires_grad or (self.bias is not None and self.bias.requires_grad)
        if base_is_trained or (isinstance(self.dropout, nn.Dropout) and self.training):
            # The adapter may read another input than W0 here, and W0 may need a gradient, which the fused function doesn't give.
            z = F.linear(self.dropout(x), self.lora_A.to(x.dtype))
            if self.statistics is not None:
                z = cast(Tensor, CollectStatistics.apply(z, self.statistics))
            return F.linear(x, W, self.bias) + self.scaling * F.linear(z, self.lora_B.to(x.dtype))
        y = _LoRAFunction.apply(x, W, self.bias, self.lora_A, self.lora_B, self.scaling, self.statistics)
        return cast(Tensor, y)

    @torch.no_grad()
    def delta(self) -> Float[Tensor, "d_out d_in"]:
        """Return the update s·B·A, in the adapter's dtype."""
        return self.scaling * (self.lora_B @ self.lora_A)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to W0, in place; from then on forward is one plain matrix product.

        Rounding to a half-precision W0 loses small updates. Merge into a float32 base where the result is kept
        (`adapters.load.merge` does).

        Raises:
            RankwiseError: W0 is kept in 8 or 4 bits.
        """
        if not self.merged:
            self._add_to_weight(self.delta())
            self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtract the update from W0 again; exact to the rounding of W0's dtype."""
        if self.merged:
            self._add_to_weight(-self.delta())
            self.merged = False

    def check_unmerged(self) -> None:
        """Raise a RankwiseError where W0 holds the update: other matrices would leave the old update in it."""
        if self.merged:
            raise RankwiseError("This LoRA layer is merged into its weight. Call its unmerge() first.")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.check_unmerged()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}{SCALING}"] = torch.tensor(self.scaling, dtype=torch.float64)

    def _add_to_weight(self, delta: Tensor) -> None:
        delta = delta.t() if self.fan_in_fan_out else delta
        self.weight.copy_(self.weight.to(delta.dtype) + delta)

    def extra_repr(self) -> str:
        return f"{self.in_features} → {self.out_features}, rank={self.rank}, scaling={self.scaling:g}"


SCALING = "lora_scaling"
"""Name of s in a layer's state dict."""


def _take_rank(layer: LoRALinear, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Give a layer the rank and the scaling of the state dict that it is about to load."""
    scaling = state_dict.pop(f"{prefix}{SCALING}", None)
    A, B = (state_dict.get(f"{prefix}{name}", getattr(layer, name)) for name in ("lora_A", "lora_B"))
    layer.check_unmerged()
    layer.take_rank(A, B)
    if scaling is not None:
        layer.scaling = float(scaling)


class _LoRAFunction(torch.autograd.Function):
    """Compute y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ, and the gradients of x, A and B only.

        dz = s·dy·B      dx = dy·W + dz·A      dA = dzᵀ·x      dB = s·dyᵀ·z

    A and B are kept in float32 and rounded to x's dtype for the products, as autocast would.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        s: float,
        statistics: Tensor | None = None,
    ) -> Tensor:
        y = F.linear(x, W, bias)
        dtype = y.dtype  # under autocast not x's
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        z = rows @ A.to(dtype).t()
        y.view(-1, y.shape[-1]).addmm_(z, B.to(dtype).t(), alpha=s)
        ctx.save_for_backward(rows, z, W, A, B)
        ctx.s, ctx.x_shape, ctx.x_dtype = s, x.shape, x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # of the decorator
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        rows, z, W, A, B = ctx.saved_tensors
        dtype = rows.dtype
        dy = grad_outputs[0].reshape(-1, W.shape[0]).to(dtype)
        dz = (dy @ B.to(dtype)).mul_(ctx.s)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ W.to(dtype)).addmm_(dz, A.to(dtype)).view(ctx.x_shape).to(ctx.x_dtype)
        dA = (dz.t() @ rows).to(A.dtype) if ctx.needs_input_grad[3] else None
        dB = (dy.t() @ z).mul_(ctx.s).to(B.dtype) if ctx.needs_input_grad[4] else None
        statistics = _second_moments(z, dz) if ctx.needs_input_grad[6] else None
        return dx, None, None, dA, dB, None, statistics


class CollectStatistics(torch.autograd.Function):
    """Return z unchanged; backward gives its second moments, and those of dz, as the gradient of `statistics`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, statistics: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (z,), (dz,) = ctx.saved_tensors, grad_outputs
        rows = z.reshape(-1, z.shape[-1])
        return dz, _second_moments(rows, dz.reshape(rows.shape))


def _second_moments(
    z: Float[Tensor, "tokens rank"], dz: Float[Tensor, "tokens rank"]
) -> Float[Tensor, "2*rank+1 rank"]:
    """Return Σ z·zᵀ, below it Σ dz·dzᵀ, and in the last row the number of tokens.

    Tokens without a gradient, such as padding, don't affect the loss and don't count.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)  # squares of gradients underflow in float16
    z, dz = z.to(dtype), dz.to(dtype)
    counts = (dz != 0).any(dim=1, keepdim=True).to(dtype)
    return torch.cat([z.t() @ (z * counts), dz.t() @ dz, counts.sum().expand(1, z.shape[1])])


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Return every LoRA layer of a model by its module path, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}
