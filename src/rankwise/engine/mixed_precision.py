"""Mixed precision for trained weights: float32 masters, and copies in the dtype of the matrix products.

    masters [float32] ── rounded once a step ──► copies [bfloat16] ── forward, backward ──► gradients [bfloat16] ──► optimizer

Autocast alone would round every weight in every micro-batch, and would write every gradient in float32, too. The numbers are the same.
Source: Micikevicius et al. 2018, arXiv 1710.03740, section 3.1.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


class Copies(nn.Module):
    """Copies of the trained matrices of a model's Linear layers. Other trained weights are used as they are.

    It is a module, so that `TensorMemory` counts the copies among the weights.

    Args:
        model: with its trained weights in float32.
        parameters: what is trained.
        dtype: of the products; None makes no copies.
    """

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        trained, modules = set(parameters), list(model.modules())
        linears = [m for m in modules if isinstance(m, nn.Linear | Conv1D)] if dtype else []
        others = {p for m in modules if m not in set(linears) for p in m._parameters.values()}
        self._places = [
            (m, weight) for m in linears if (weight := cast(nn.Parameter, m.weight)) in trained - others
        ]
        self._of = {master: nn.Parameter(torch.empty_like(master, dtype=dtype)) for _, master in self._places}
        self._copies = nn.ParameterList(self._of.values())
        self._embeddings = [m for m in modules if isinstance(m, nn.Embedding) and m.weight in trained]
        self.nbytes = sum(copy.nbytes for copy in self._of.values())

    def leaves(self, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """Return what to ask gradients of: for each parameter its copy, or the parameter where it has none."""
        return [self._of.get(p, p) for p in parameters]

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the masters to their copies."""
        for master, copy in self._of.items():
            copy.copy_(master)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the model compute with the copies in a `with` block. Gradients of embeddings are sparse there."""
        for embedding in self._embeddings:
            embedding.sparse = True
        for module, master in self._places:
            module._parameters["weight"] = self._of[master]
        try:
            yield
        finally:
            for embedding in self._embeddings:
                embedding.sparse = False
            for module, master in self._places:
                module._parameters["weight"] = master
