"""Losses of labelled tokens without all their logits at once: a language model has one for every word.

    hidden states [labels, d] ── pieces of `TOKENS` ──► head ─► logits [TOKENS, words] ─► losses      kept for backward: d numbers a token

A token's loss depends on its own hidden state alone, so a piece's gradient is computed with its losses, and multiplied by the losses' own
gradients in backward. A head that is trained itself computes its logits again there. Source: Hsu et al. 2024 (Liger, arXiv 2410.10989).
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rankwise.models.families import task_type

TOKENS = 256
"""Tokens in a piece. At 50,000 words their logits take 50 MB, and the products are as fast as larger ones."""
Losses = Callable[[Tensor, Tensor], Tensor]
"""(logits [labels, words], labels) → the loss of each, float [labels]."""


def in_pieces(
    head: nn.Module, hidden: Float[Tensor, "labels d"], labels: Int64[Tensor, "labels"], losses: Losses
) -> Float[Tensor, "labels"]:
    """Return the losses of tokens from the hidden states that a language model's head reads.

    Args:
        head: gives logits.
        hidden: at the labelled tokens.
        labels: of these tokens.
        losses: of logits and labels; each of its own token alone.
    """

    def piece(h: Tensor, y: Tensor) -> Tensor:
        logits = head(h)
        return losses(logits.to(torch.promote_types(logits.dtype, torch.float32)), y)

    trained = any(p.requires_grad for p in head.parameters())
    found = []
    for h, y in zip(hidden.split(TOKENS), labels.split(TOKENS), strict=True):
        if not torch.is_grad_enabled():
            found.append(piece(h, y))
        elif trained:
            found.append(cast(Tensor, checkpoint(piece, h, y, use_reentrant=False)))
        else:
            found.append(cast(Tensor, _FrozenHead.apply(h, y, piece)))
    return torch.cat(found)


class _FrozenHead(torch.autograd.Function):
    """Losses of a piece, and the gradient of each for its own hidden state."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, piece: Losses) -> Tensor:
        with torch.enable_grad():
            h = hidden.detach().requires_grad_()
            losses = piece(h, labels)
            (gradient,) = torch.autograd.grad(losses.sum(), h)
        ctx.save_for_backward(gradient)
        return losses.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].unsqueeze(1).to(gradient.dtype), None, None


@torch.no_grad()
def has_plain_head(model: nn.Module) -> bool:
    """Return whether a language model's logits are what its head makes of its body's last hidden states, and nothing else.

    Some models cap or scale their logits. It is tried on a few tokens.
    """
    if task_type(model) != "CAUSAL_LM" or not hasattr(model, "get_decoder"):
        return False
    hf = cast(Any, model)
    head, ids = hf.get_output_embeddings(), torch.arange(1, 5, device=next(model.parameters()).device)[None]
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        logits, hidden = hf(ids).logits, hf.get_decoder()(ids).last_hidden_state
        return head is not None and torch.equal(head(hidden).to(logits.dtype), logits)
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
        return False
    finally:
        for module in was_training:
            module.training = True
