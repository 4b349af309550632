"""The statistics that adaptive rank rests on: for each LoRA layer, the second moments of z = A·x and of its gradient dz.

    backward of each step ─► Σ z·zᵀ, Σ dz·dzᵀ, tokens ─► sums that decay: what was seen n steps ago counts decay^n

A layer's backward computes z and dz anyway and leaves their second moments in `LoRALinear.statistics.grad` (`lora/layer.py`). In a tensor
[2·rank + 1, rank] the first `rank` rows are Σ z·zᵀ, the next are Σ dz·dzᵀ, and the last holds the number of tokens in every entry.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from rankwise.lora.layer import LoRALinear


class Statistics:
    """Decaying sums of the layers' second moments.

    Attributes:
        sums: module path → [2·rank + 1, rank]; layers that no gradient has reached yet are missing. Read them by `known`: a layer may
            have taken another rank since.
        skipped: steps that were left out, because something in their statistics wasn't finite.

    Args:
        layers: by module path; they collect from now on.
        decay: factor on the sums, a step.
    """

    def __init__(self, layers: Mapping[str, LoRALinear], decay: float) -> None:
        self.layers, self.decay = layers, decay
        self.sums: dict[str, Tensor] = {}
        self.skipped = 0
        self.collect()

    def collect(self) -> None:
        """Have every layer collect from a zero tensor of its present rank."""
        for layer in self.layers.values():
            layer.collect_statistics()

    def update(self) -> bool:
        """Take what the last backward left in the layers, and add it to the decayed sums.

        A step whose statistics aren't all finite is left out whole: one inf would stay in a decayed sum for good.

        Returns:
            Whether the step is in the sums.
        """
        new: dict[str, Tensor] = {}
        for path, layer in self.layers.items():
            if layer.statistics is not None and layer.statistics.grad is not None:
                new[path], layer.statistics.grad = layer.statistics.grad, None
        if not all_finite(new.values()):
            self.skipped += 1
            return False
        # of another shape after a state dict of another rank was loaded
        known = [path for path in new if path in self.sums and self.sums[path].shape == new[path].shape]
        if known:  # all in one call: a GPU starts fewer kernels
            sums = [self.sums[path] for path in known]
            torch._foreach_mul_(sums, self.decay)
            torch._foreach_add_(sums, [new[path] for path in known])
        begun = set(known)
        self.sums |= {path: value for path, value in new.items() if path not in begun}
        return True

    def known(self, path: str) -> Tensor | None:
        """Return a layer's sums [2·rank + 1, rank]; None where there are none of its present rank."""
        rank, sums = self.layers[path].rank, self.sums.get(path)
        return sums if sums is not None and sums.shape == (2 * rank + 1, rank) else None

    def of(self, path: str) -> Tensor:
        """Return a layer's sums [2·rank + 1, rank], zeros where there are none of its present rank."""
        rank, sums = self.layers[path].rank, self.known(path)
        return self.layers[path].lora_A.new_zeros(2 * rank + 1, rank) if sums is None else sums


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether every number in some tensors is finite."""
    norms = torch._foreach_norm([t for t in tensors if t.numel()] or [torch.zeros(1)], float("inf"))
    return bool(torch.stack([norm.to(norms[0].device) for norm in norms]).isfinite().all())
