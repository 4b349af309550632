"""What differs between model families, one entry a family, and what is read off any model the same way.

To add a family, put one entry into `FAMILIES`, under the `model_type` of its config. The rest (the body and its heads, the width, where
positions start) is found from the model itself.
"""

from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from rankwise.errors import RankwiseError

SHORT = 512
LONGER = 1024
"""Tokens a text may have where nobody asks for more, in classifiers and in language models that take more."""

CLASSES: dict[str, set[str]] = {
    "SEQ_CLS": set(auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()),
    "TOKEN_CLS": set(auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values()),
    "CAUSAL_LM": set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()),
    "SEQ_2_SEQ_LM": set(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()),
    "QUESTION_ANS": set(auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values()),
}
"""The classes of Transformers for each of PEFT's task types."""


@dataclass(frozen=True)
class Family:
    """A family of pretrained models.

    Attributes:
        query_value: names of its query and value layers; where they are fused with the key, the fused layer.
    """

    query_value: tuple[str, ...]


FAMILIES: dict[str, Family] = {
    "albert": Family(("query", "value")),
    "bert": Family(("query", "value")),
    "camembert": Family(("query", "value")),
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
    "mpnet": Family(("attn.q", "attn.v")),
    "opt": Family(("q_proj", "v_proj")),
    "phi": Family(("q_proj", "v_proj")),
    "phi3": Family(("qkv_proj",)),
    "qwen2": Family(("q_proj", "v_proj")),
    "qwen3": Family(("q_proj", "v_proj")),
    "roberta": Family(("query", "value")),
    "xlm-roberta": Family(("query", "value")),
}
"""By the `model_type` of a family's config."""


PER_TOKEN = ("CAUSAL_LM", "TOKEN_CLS")
"""Tasks, by PEFT's names, whose models have logits of each token."""


def task_type(model: nn.Module) -> str | None:
    """Return what a Transformers model is for, by PEFT's name: `SEQ_CLS`, `CAUSAL_LM`, `TOKEN_CLS` …; None where its class doesn't say.

    Args:
        model: in PEFT's wrapper, too.
    """
    inner = getattr(model, "get_base_model", None)
    classes = {kind.__name__ for kind in type(inner() if callable(inner) else model).__mro__}
    return next((name for name, known in CLASSES.items() if not classes.isdisjoint(known)), None)


def body_and_heads(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Return the pretrained body of a model and the names of the modules on top of it that are trained for a task.

    For RoBERTa's classifier these are `model.roberta` and `["classifier"]`. A language model's head is pretrained and often shares its
    matrix with the embeddings, so it isn't among them. A module without Transformers' `base_model_prefix` is all body.
    """
    prefix = getattr(model, "base_model_prefix", "")
    body = getattr(model, prefix, None) if prefix else None
    if not isinstance(body, nn.Module):
        return model, []
    pretrained = (language_head(model) or "").split(".")[0]
    heads = [
        n
        for n, child in model.named_children()
        if child is not body and n != pretrained and any(True for _ in child.parameters())
    ]
    return body, heads


def language_head(model: nn.Module) -> str | None:
    """Return the path of the layer that gives a language model's logits; None where there is none."""
    layer = cast(Any, model).get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return next((path for path, module in model.named_modules() if module is layer), None)


def check_heads(model: nn.Module) -> None:
    """Check that a Transformers model shows which of its parts are to be trained for a task.

    Raises:
        RankwiseError: it has a language model's head and other heads, or it is made for a task, and its head can't be told from its body.
    """
    name, (body, heads) = type(model).__name__, body_and_heads(model)
    if heads and (pretrained := language_head(model)):
        raise RankwiseError(
            f"{name} has a language model's head ({pretrained}) and others ({', '.join(heads)}), so it can't be told what is trained. "
            "Take a model with one head."
        )
    if (
        body is model
        and isinstance(model, PreTrainedModel)
        and "For" in name
        and language_head(model) is None
    ):
        raise RankwiseError(
            f"The head of {name} can't be told from its body, which Transformers calls {model.base_model_prefix!r}: it has "
            f"{', '.join(path for path, _ in model.named_children())}."
        )


def first_position(model: nn.Module) -> int:
    """Return the position id of a sequence's first token: 0, or in RoBERTa's family the one behind the padding index.

    A model counts from there if its position table has a padding index.
    """
    embeddings = getattr(getattr(model, "base_model", model), "embeddings", None)
    table, own = (getattr(embeddings, name, None) for name in ("position_embeddings", "padding_idx"))
    return own + 1 if isinstance(own, int) and getattr(table, "padding_idx", None) is not None else 0


def position_limit(model: nn.Module) -> int | None:
    """Return the number of tokens that a model's position table has a row for; None where it has no table.

    Args:
        model: with or without weights.
    """
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return positions - first_position(model) if isinstance(positions, int) and positions > 0 else None


def token_limit(model: nn.Module, tokenizer: Any) -> int | None:
    """Return the number of tokens that both a model and its tokenizer take; None where neither has a limit."""
    limits = (position_limit(model), tokenizer.model_max_length)
    known = [n for n in limits if isinstance(n, int) and 0 < n < 10**6]
    return min(known) if known else None


def text_limit(model: nn.Module, tokenizer: Any, asked: int | None = None) -> int:
    """Return the number of tokens a text may have: those asked for, or the model's own limit, 512 at most.

    For language models it is 1,024 at most, as in TRL.

    Raises:
        RankwiseError: more are asked for than model and tokenizer take.
    """
    limit = token_limit(model, tokenizer)
    if asked is not None and limit is not None and asked > limit:
        raise RankwiseError(f"This model takes {limit} tokens at most; `max_length={asked}` is more.")
    short = LONGER if task_type(model) == "CAUSAL_LM" else SHORT
    return asked or min(limit or short, short)


def width(config: Any) -> int:
    """Return the hidden size of a model's config, whatever its family calls it.

    Raises:
        RankwiseError: it has none.
    """
    for name in ("hidden_size", "dim", "n_embd", "d_model"):
        if isinstance(found := getattr(config, name, None), int) and found > 0:
            return found
    raise RankwiseError(f"The config of this {config.model_type} model has no hidden size.")
