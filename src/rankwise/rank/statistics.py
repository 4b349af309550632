"""The statistics that adaptive rank rests on: for each LoRA layer, the second moments of z = A·x and of its gradient dz.

    backward of each step ─► Σ z·zᵀ, Σ dz·dzᵀ, tokens ─► sums that decay: what was seen n steps ago counts decay^n

A layer's backward computes z and dz anyway and leaves their second moments in `LoRALinear.statistics.grad` (`lora/layer.py`). In a tensor
[2·rank + 1, rank] the first `rank` rows are Σ z·zᵀ, the next are Σ dz·dzᵀ, and the last holds the number of tokens in every entry.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from rankwise.lora.layer import LoRALinear


class Statistics:
    """Decaying sums of the layers' second moments.

    Attributes:
        sums: module path → [2·rank + 1, rank]; layers that no gradient has reached yet are missing.

    Args:
        layers: by module path; they collect from now on.
        decay: factor on the sums, a step.
    """

    def __init__(self, layers: Mapping[str, LoRALinear], decay: float) -> None:
        self.layers, self.decay = layers, decay
        self.sums: dict[str, Tensor] = {}
        self.collect()

    def collect(self) -> None:
        """Have every layer collect from a zero tensor of its present rank."""
        for layer in self.layers.values():
            layer.collect_statistics()

    def update(self) -> None:
        """Take what the last backward left in the layers, and add it to the decayed sums."""
        new: dict[str, Tensor] = {}
        for path, layer in self.layers.items():
            if layer.statistics is not None and layer.statistics.grad is not None:
                new[path], layer.statistics.grad = layer.statistics.grad, None
        if known := [
            path for path in new if path in self.sums
        ]:  # all in one call: a GPU starts fewer kernels
            sums = [self.sums[path] for path in known]
            torch._foreach_mul_(sums, self.decay)
            torch._foreach_add_(sums, [new[path] for path in known])
        self.sums |= {path: value for path, value in new.items() if path not in self.sums}

    def of(self, path: str) -> Tensor:
        """Return a layer's sums [2·rank + 1, rank], zeros where there are none yet."""
        rank = self.layers[path].rank
        return self.sums.get(path, self.layers[path].lora_A.new_zeros(2 * rank + 1, rank))
