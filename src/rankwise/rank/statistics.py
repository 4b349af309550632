"""The statistics that adaptive rank rests on: for each LoRA layer, the second moments of z = A·x and of its gradient dz.

    backward of each step ─► Σ z·zᵀ, Σ dz·dzᵀ, tokens ─► sums that decay: what was seen n steps ago counts decay^n

A layer's backward computes z and dz anyway and leaves their second moments in `LoRALinear.statistics.grad` (`lora/layer.py`). In a tensor
[2·rank + 1, rank] the first `rank` rows are Σ z·zᵀ, the next are Σ dz·dzᵀ, and the last holds the number of tokens in every entry.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from rankwise.lora.low_rank import LowRankLayer


class Statistics:
    """Decaying sums of the layers' second moments.

    Attributes:
        sums: module path → [2·rank + 1, rank]; layers that no gradient has reached yet are missing. Read them by `known`: a layer may
            have taken another rank since.

    Args:
        layers: by module path; they collect from now on.
        decay: factor on the sums, a step.
    """

    def __init__(self, layers: Mapping[str, LowRankLayer], decay: float) -> None:
        self.layers, self.decay = layers, decay
        self.sums: dict[str, Tensor] = {}
        self.collect()

    def collect(self) -> None:
        """Have every layer collect from a zero tensor of its present rank."""
        for layer in self.layers.values():
            layer.collect_statistics()

    def update(self, gradient_scale: float = 1.0) -> Tensor | bool:
        """Take what the last backward left in the layers, and add it to the decayed sums.

        A step whose statistics aren't all finite leaves the sums as they are: one inf would stay in a decayed sum for good.

        Args:
            gradient_scale: factor on the loss that backward began from, a `GradScaler`'s for example.

        Returns:
            Whether the step is in the sums, as a tensor on the layers' device: reading it waits for the device.
        """
        new = self.take()
        if not new:
            return True
        if gradient_scale != 1.0:
            ranks = [(value, value.shape[1]) for value in new.values()]
            torch._foreach_mul_([value[r : 2 * r] for value, r in ranks], gradient_scale**-2)
        finite, values = _zero_unless_finite(list(new.values()))
        added = dict(zip(new, values, strict=True))
        # of another shape after a state dict of another rank was loaded
        known = [path for path in added if path in self.sums and self.sums[path].shape == added[path].shape]
        begun = added.keys() - set(known)
        if begun and finite:  # waits for the device, in a layer's first step only
            self.sums |= {path: added[path].clone() for path in added if path in begun}
        for device in dict.fromkeys(self.sums[path].device for path in known):
            here = [path for path in known if self.sums[path].device == device]
            sums = [self.sums[path] for path in here]
            kept = torch.where(finite.to(device), sums[0].new_full((), self.decay), 1.0)
            torch._foreach_mul_(sums, kept)  # all in one call: a GPU starts fewer kernels
            torch._foreach_add_(sums, [added[path] for path in here])
        return finite

    def take(self) -> dict[str, Tensor]:
        """Return what the last backward left in the layers, by module path, and forget it there."""
        new: dict[str, Tensor] = {}
        for path, layer in self.layers.items():
            if layer.statistics is not None and layer.statistics.grad is not None:
                new[path], layer.statistics.grad = layer.statistics.grad, None
        return new

    def known(self, path: str) -> Tensor | None:
        """Return a layer's sums [2·rank + 1, rank]; None where there are none of its present rank."""
        rank, sums = self.layers[path].rank, self.sums.get(path)
        return sums if sums is not None and sums.shape == (2 * rank + 1, rank) else None

    def of(self, path: str) -> Tensor:
        """Return a layer's sums [2·rank + 1, rank], zeros where there are none of its present rank."""
        rank, sums = self.layers[path].rank, self.known(path)
        return self.layers[path].lora_A.new_zeros(2 * rank + 1, rank) if sums is None else sums


def _zero_unless_finite(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return whether every number in some tensors is finite, and the tensors, all zero where one number isn't.

    Nothing waits for the device. One tensor of all of them needs fewer kernels than each by itself.
    """
    flat: dict[tuple[torch.device, torch.dtype], Tensor] = {}
    for kind in dict.fromkeys((t.device, t.dtype) for t in tensors):
        flat[kind] = torch.cat([t.reshape(-1) for t in tensors if (t.device, t.dtype) == kind])
    every = [values.isfinite().all() for values in flat.values()]
    finite = torch.stack([one.to(every[0].device) for one in every]).all()
    rest = {kind: torch.where(finite.to(values.device), values, 0.0) for kind, values in flat.items()}
    masked = []
    for t in tensors:
        values = rest[t.device, t.dtype]
        masked.append(values[: t.numel()].view(t.shape))
        rest[t.device, t.dtype] = values[t.numel() :]
    return finite, masked


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether every number in some tensors is finite."""
    return all(bool(t.isfinite().all()) for t in tensors)
