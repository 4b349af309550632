"""What adaptive rank needs of a layer: a trainable update s·B·A of any rank, and statistics of it.

LoRALinear (lora/layer.py)         rankwise.adapt(model)
PeftLayer (lora/peft_layer.py)     get_peft_model(model, LoraConfig(...)), or model.add_adapter(LoraConfig(...))
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.config import Preference


class LowRankLayer(ABC):
    """A layer with an update s·B·A whose rank can change. A and B are the same parameters at every rank.

    Attributes:
        lora_A: [rank, d_in].
        lora_B: [d_out, rank].
        scaling: s.
        statistics: None, or a zero tensor [2·rank + 1, rank]; see `collect_statistics`. Its gradient holds Σ z·zᵀ, below it Σ dz·dzᵀ,
            and in the last row the number of tokens. The sums are over the tokens that the loss depends on.
        prefer: what adaptive rank prefers in this layer's model, see `rank.config.preferring`.
        replaced: the A and B that a state dict or `resize` has replaced since statistics are collected; None where A and B have only
            been trained.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scaling: float
    statistics: Tensor | None = None
    prefer: Preference = "accuracy"
    replaced: tuple[Tensor, Tensor] | None = None

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    @property
    def in_features(self) -> int:
        return self.lora_A.shape[1]

    @property
    def out_features(self) -> int:
        return self.lora_B.shape[0]

    @property
    def is_trained(self) -> bool:
        return self.lora_A.requires_grad or self.lora_B.requires_grad

    @abstractmethod
    def check_unmerged(self) -> None:
        """Raise a RankwiseError where the base weight holds the update: other matrices would leave the old update in it."""

    def collect_statistics(self, on: bool = True) -> None:
        """Have backward leave second moments in `statistics.grad`, or return them where `torch.autograd.grad` asks for `statistics`."""
        shape = 2 * self.rank + 1, self.rank
        dtype = torch.promote_types(self.lora_A.dtype, torch.float32)  # sums in bfloat16 would stand still
        self.statistics = self.lora_A.new_zeros(shape, dtype=dtype).requires_grad_() if on else None
        self.replaced = None

    @torch.no_grad()
    def resize(self, A: Float[Tensor, "rank d_in"], B: Float[Tensor, "d_out rank"]) -> None:
        """Replace A and B by matrices of any rank, 0 included; s = alpha/r follows the rank.

        The parameters stay the same objects and lose their gradients.

        Raises:
            RankwiseError: the layer is merged.
        """
        self.check_unmerged()
        replaced = self.replaced_by(A, B)
        s = self.scaling * max(1, self.rank) / max(1, A.shape[0])
        replace_value(self.lora_A, A)
        replace_value(self.lora_B, B)
        self.scaling = s
        if self.statistics is not None:
            self.collect_statistics()
            self.replaced = replaced

    def replaced_by(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return what `replaced` becomes when A and B are set to these values: the first A and B, or None where these are the first."""
        if self.statistics is None or self.lora_A.is_meta:
            return None
        first = self.replaced or (self.lora_A.detach().clone(), self.lora_B.detach().clone())
        same = all(torch.equal(one, other.to(one)) for one, other in zip(first, (A, B), strict=True))
        return None if same else first

    def take_rank(self, A: Tensor, B: Tensor) -> None:
        """Take the rank of matrices that a state dict is about to load."""
        if not (A.ndim == B.ndim == 2 and A.shape[0] == B.shape[1] and self._has_sides_of(A, B)):
            return
        replaced = self.replaced_by(A, B)
        if A.shape[0] != self.rank:
            self.resize(self.lora_A.new_empty(A.shape), self.lora_B.new_empty(B.shape))
        self.replaced = replaced

    def _has_sides_of(self, A: Tensor, B: Tensor) -> bool:
        return (A.shape[1], B.shape[0]) == (self.lora_A.shape[1], self.lora_B.shape[0])


def replace_value(parameter: nn.Parameter, value: Tensor) -> None:
    """Give a parameter a value of another shape; it stays the same object and loses its gradient."""
    parameter.grad = None
    # A graph that still exists, such as the last loss's, keeps the parameter's gradient node for the old shape alive. Torch makes a
    # new node when the dtype changes.
    parameter.data = value.new_empty(
        0, dtype=torch.float16 if value.dtype != torch.float16 else torch.float32
    )
    parameter.data = value
