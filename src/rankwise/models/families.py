"""What differs between model families, one entry a family, and what is read off any model the same way.

To add a family, put one entry into `FAMILIES`, under the `model_type` of its config. The rest (the body and its heads, the width, where
positions start) is found from the model itself.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

SHORT = 512
"""Tokens a text may have where nobody asks for more, in models that take more."""


@dataclass(frozen=True)
class Family:
    """A family of pretrained models.

    Attributes:
        query_value: names of its query and value layers; where they are fused with the key, the fused layer.
        reserved_positions: rows of the position table that no token uses. RoBERTa's positions start behind the padding index.
    """

    query_value: tuple[str, ...]
    reserved_positions: int = 0


FAMILIES: dict[str, Family] = {
    "albert": Family(("query", "value")),
    "bert": Family(("query", "value")),
    "camembert": Family(("query", "value"), reserved_positions=2),
    "deberta": Family(("in_proj",)),
    "deberta-v2": Family(("query_proj", "value_proj")),
    "distilbert": Family(("q_lin", "v_lin")),
    "electra": Family(("query", "value")),
    "gemma": Family(("q_proj", "v_proj")),
    "gemma2": Family(("q_proj", "v_proj")),
    "gemma3_text": Family(("q_proj", "v_proj")),
    "gpt2": Family(("c_attn",)),
    "llama": Family(("q_proj", "v_proj")),
    "mistral": Family(("q_proj", "v_proj")),
    "modernbert": Family(("Wqkv",)),
    "mpnet": Family(("attn.q", "attn.v"), reserved_positions=2),
    "opt": Family(("q_proj", "v_proj")),
    "phi3": Family(("qkv_proj",)),
    "qwen2": Family(("q_proj", "v_proj")),
    "qwen3": Family(("q_proj", "v_proj")),
    "roberta": Family(("query", "value"), reserved_positions=2),
    "xlm-roberta": Family(("query", "value"), reserved_positions=2),
}
"""By the `model_type` of a family's config."""


def body_and_heads(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Return the pretrained body of a classifier and the names of the modules on top of it.

    For RoBERTa these are `model.roberta` and `["classifier"]`. A module without Transformers' `base_model_prefix` is all body.
    """
    prefix = getattr(model, "base_model_prefix", "")
    body = getattr(model, prefix, None) if prefix else None
    if not isinstance(body, nn.Module):
        return model, []
    heads = [
        n
        for n, child in model.named_children()
        if child is not body and any(True for _ in child.parameters())
    ]
    return body, heads


def first_position(model: nn.Module) -> int:
    """Return the position id of a sequence's first token: 0, or in RoBERTa's family the one behind the padding index."""
    embeddings = getattr(getattr(model, "base_model", model), "embeddings", None)
    if hasattr(embeddings, "create_position_ids_from_input_ids"):
        return int(embeddings.padding_idx) + 1  # pyright: ignore[reportOptionalMemberAccess,reportArgumentType]
    return 0


def position_limit(config: Any) -> int | None:
    """Return the number of tokens that a config's position table has a row for; None where it has no table."""
    positions = getattr(config, "max_position_embeddings", None)
    family = FAMILIES.get(config.model_type)
    return positions - family.reserved_positions if positions and family else positions


def token_limit(config: Any, tokenizer: Any) -> int | None:
    """Return the number of tokens that both a model and its tokenizer take; None where neither has a limit."""
    known = [n for n in (position_limit(config), tokenizer.model_max_length) if n and n < 10**6]
    return min(known) if known else None


def text_limit(config: Any, tokenizer: Any) -> int:
    """Return the number of tokens a text may have by default: the model's own limit, 512 at most."""
    return min(token_limit(config, tokenizer) or SHORT, SHORT)


def width(config: Any) -> int:
    """Return the hidden size of a model's config, whatever its family calls it."""
    return next(
        int(v) for n in ("hidden_size", "dim", "n_embd", "d_model") if (v := getattr(config, n, None))
    )
