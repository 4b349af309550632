"""The GEMM lower bound of a LoRA step: its matrix products alone, at the true number of tokens, in the dtype of the run.

    forward    X Wᵀ of every Linear,  Q Kᵀ and P V of every sequence
    backward   dY W where anything below is trained,  four products per attention,
               dY B, (dY B)A, dA, dB of every adapter

No step can be faster than its products with this machine's matrix library. The list of products is read off the model: one
small forward pass records each Linear in order, and whether a gradient has to pass through it.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.bench import architectures
from rankwise.bench.config import BenchConfig
from rankwise.engine.batches import batch_order
from rankwise.lora.inject import find_targets
from rankwise.models.families import body_and_heads, language_head
from rankwise.tasks.encoding import Encoded


@dataclass(frozen=True)
class Product:
    """The products of one Linear.

    Attributes:
        weight: [d_out, d_in].
        applied_to: `tokens`; or `rows`, as a classifier's pooler and head; or `labels`, as a language model's head.
        needs_dx: a layer before it is trained, so the gradient of its input is needed.
        adapted: it has an adapter.
        trained: its own weight is trained.
    """

    weight: Tensor
    applied_to: str
    needs_dx: bool
    adapted: bool
    trained: bool


def build_runner(config: BenchConfig) -> "LowerBound":
    """Build the model for its shapes and weights alone.

    Args:
        config: resolved, so device and dtype are named.
    """
    dtype = getattr(torch, config.dtype)
    model: Any = architectures.build(config, dtype=dtype)
    linears = products(model.to(config.device))
    adapters = {
        size: torch.randn(config.rank, size, dtype=dtype, device=config.device)
        for product in linears
        if product.adapted
        for size in product.weight.shape
    }
    return LowerBound(config, linears, adapters, *attention_shape(model.config))


@dataclass(frozen=True)
class LowerBound:
    """The products of a step, computed once per batch; a `Runner`.

    Attributes:
        config: resolved.
        linears: every Linear, in order of execution.
        adapters: size → a matrix [rank, size], for each input and output size of an adapter.
        heads, layers, width: of attention; `width` is that of one head.
    """

    config: BenchConfig
    linears: list[Product]
    adapters: dict[int, Tensor]
    heads: int
    layers: int
    width: int

    def order(self, lengths: np.ndarray, seed: int) -> list[np.ndarray]:
        """Return batches in random order, because without padding similar lengths gain nothing."""
        return batch_order(lengths, self.config.batch_size, seed=seed)

    def train(self, rows: Encoded, batches: list[np.ndarray], after_step: Callable[[], None]) -> None:
        """Compute the products of one step for each batch."""
        for batch in batches:
            lengths = rows.lengths[batch]
            times = {"tokens": int(lengths.sum()), "rows": len(batch), "labels": rows.count_labels(batch)}
            _linear_products(self.linears, self.adapters, times)
            _attention_products(lengths, self)
            after_step()


def products(model: Any) -> list[Product]:
    """Return the Linears of a LoRA step (adapters on query and value, a classifier's head trained), in order of execution."""
    body, heads = body_and_heads(model)
    writes = language_head(model)
    targets = set(find_targets(model))
    model.requires_grad_(False)
    names = {module: name for name, module in model.named_modules()}
    found: list[Product] = []

    def record(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight if isinstance(module, nn.Linear) else module.weight.t()
        name, x = names[module], inputs[0]
        trained = any(name == head or name.startswith(f"{head}.") for head in heads)
        to = "tokens" if x.numel() // x.shape[-1] == tokens.numel() else "rows"
        applied_to = "labels" if name == writes else to
        found.append(Product(weight.detach(), applied_to, x.requires_grad, name in targets, trained))

    hooks = [m.register_forward_hook(record) for m in names if isinstance(m, nn.Linear | Conv1D)]
    for name in targets:  # in place of its adapter: from here on a gradient is needed
        model.get_submodule(name).weight.requires_grad_(True)
    device = next(body.parameters()).device
    tokens = torch.full((2, 3), (model.config.pad_token_id + 1) % 2, device=device)
    model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    for hook in hooks:
        hook.remove()
    return found


def attention_shape(config: Any) -> tuple[int, int, int]:
    """Return the number of query heads, the number of layers and the width of a head."""
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    return heads, layers, getattr(config, "head_dim", None) or config.hidden_size // heads


@torch.no_grad()
def _linear_products(linears: list[Product], adapters: dict[int, Tensor], times: Mapping[str, int]) -> None:
    """Compute forward in order and backward in reverse. All layers share one input and one gradient of each shape."""
    first = linears[0].weight
    shapes = {(times[p.applied_to], size) for p in linears for size in p.weight.shape}
    like = {shape: first.new_empty(shape).fill_(0.01) for shape in shapes}

    def ends(product: Product) -> tuple[Tensor, Tensor]:
        n, (d_out, d_in) = times[product.applied_to], product.weight.shape
        return like[n, d_in], like[n, d_out]

    for product in linears:
        x, _ = ends(product)
        torch.mm(x, product.weight.t())
        if product.adapted:
            torch.mm(torch.mm(x, adapters[x.shape[1]].t()), adapters[product.weight.shape[0]])
    for product in reversed(linears):
        x, dy = ends(product)
        if product.needs_dx:
            torch.mm(dy, product.weight)
        if product.trained:
            torch.mm(dy.t(), x)
        if product.adapted:
            dh = torch.mm(dy, adapters[dy.shape[1]].t())
            torch.mm(dh.t(), x)  # dA
            torch.mm(dh.t(), dy)  # dB, the same shape as (x Aᵀ)ᵀ dY
            if product.needs_dx:
                torch.mm(dh, adapters[x.shape[1]])


@torch.no_grad()
def _attention_products(lengths: np.ndarray, bound: LowerBound) -> None:
    """Compute six batched products per layer, for sequences of one length at a time, so that none is padded."""
    like = bound.linears[0].weight
    groups = []
    for length, count in Counter(lengths.tolist()).items():
        batch = count * bound.heads
        groups.append(
            (
                like.new_full((batch, length, bound.width), 0.01),
                like.new_full((batch, length, length), 0.01),
            )
        )
    for _ in range(bound.layers):
        for q, p in groups:
            torch.bmm(q, q.transpose(1, 2))  # Q Kᵀ
            torch.bmm(p, q)  # P V
    for _ in range(bound.layers):
        for q, p in groups:
            torch.bmm(q, q.transpose(1, 2))  # dP = dO Vᵀ
            torch.bmm(p.transpose(1, 2), q)  # dV = Pᵀ dO
            torch.bmm(p, q)  # dQ = dS K
            torch.bmm(p.transpose(1, 2), q)  # dK = dSᵀ Q
