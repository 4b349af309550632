"""Pooling of packed sequences: one token for each row, for every family.

    hidden states [1, tokens, d] ── boundaries ──► [rows, 1, d] (first token, mean, or last token) ──► the model's own pooler and head

Encoders keep their own forward. A hook replaces the encoder's output by one token a row, because poolers and heads read `hidden[:, 0]`
only. Causal models have a bare `score` on the last token, which is found as Transformers finds it.
"""

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.engine.layout import Layout
from rankwise.engine.packing import LabelledTokens, PackedBatch
from rankwise.errors import RankwiseError
from rankwise.models.families import PER_TOKEN, task_type

END_POOLED = ("bart", "bigbird_pegasus", "mbart", "mt5", "mvp", "plbart", "t5", "umt5")
"""Families that pool at the last end-of-text token of a text, by their `model_type`."""


def packed_logits(model: nn.Module, batch: PackedBatch) -> Float[Tensor, "labels outputs"]:
    """Return logits of a packed batch, in the order of `batch.rows`, or of its labelled tokens.

    Call it inside `packed_mode.packed(model)`.

    Args:
        model: a Transformers sequence classifier, or a model with logits of each token where tokens are labelled.
        batch: on the model's device.
    """
    hf, inputs = cast(Any, model), _inputs(model, batch)
    if batch.labelled is not None:
        return _token_logits(hf, inputs, batch.labelled.places)
    if hasattr(model, "score"):
        hidden = hf.base_model(**inputs).last_hidden_state[0]
        logits = hf.score(hidden[_last(batch, hf.config.get_text_config().pad_token_id)])
    else:
        logits = hf(**inputs).logits
    return logits[batch.order]


def packed_hidden(model: nn.Module, batch: PackedBatch) -> Float[Tensor, "labels d"]:
    """Return what a language model's head reads at the labelled tokens of a packed batch; otherwise as `packed_logits`."""
    assert batch.labelled is not None
    return cast(Any, model).get_decoder()(**_inputs(model, batch)).last_hidden_state[0, batch.labelled.places]


def _inputs(model: nn.Module, batch: PackedBatch) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "layout": batch.layout,
    }
    if batch.token_type_ids is not None:
        inputs["token_type_ids"] = batch.token_type_ids
    if "use_cache" in inspect.signature(cast(Any, model).base_model.forward).parameters:
        inputs["use_cache"] = False
    return inputs


def _token_logits(hf: Any, inputs: dict[str, Any], places: Tensor) -> Float[Tensor, "labels outputs"]:
    """Return the logits of some tokens of one sequence. A language model's are computed for these tokens alone."""
    if "logits_to_keep" in inspect.signature(hf.forward).parameters:
        return hf(**inputs, logits_to_keep=places).logits[0]
    return hf(**inputs).logits[0, places]


def padded_logits(
    model: nn.Module, inputs: dict[str, Tensor], labelled: LabelledTokens | None = None
) -> Float[Tensor, "labels outputs"]:
    """Return logits of a padded batch, in the order of its rows, or of its labelled tokens.

    Models in `END_POOLED` take only batches in which all rows have as many end-of-text tokens, and pool at the last. A text may hold one
    itself (`</s>`), so rows with as many run together.

    Args:
        model: a Transformers sequence classifier.
        inputs: `input_ids`, `attention_mask` …, int64 [rows, length].
        labelled: the tokens whose logits are wanted.
    """
    if labelled is not None:
        return _padded_token_logits(model, inputs, labelled)
    groups = _rows_with_as_many_ends(model, inputs["input_ids"])
    if len(groups) == 1:
        return model(**inputs).logits
    logits = [model(**{name: values[rows] for name, values in inputs.items()}).logits for rows in groups]
    return torch.cat(logits)[torch.cat(groups).argsort()]


def _padded_token_logits(
    model: nn.Module, inputs: dict[str, Tensor], labelled: LabelledTokens
) -> Float[Tensor, "labels outputs"]:
    """Return the logits of some tokens. A language model's are computed from the first column on that has one of them.

    Columns are counted from the end, because PEFT's prompt methods put virtual tokens before the first.
    """
    length = inputs["input_ids"].shape[1]
    columns = labelled.places % length
    kept = length - int(columns.min())
    forward = getattr(model, "get_base_model", lambda: model)().forward
    some = {"logits_to_keep": kept} if "logits_to_keep" in inspect.signature(forward).parameters else {}
    logits = model(**inputs, **some).logits[:, -kept:]
    return logits[labelled.places // length, columns - (length - kept)]


def _rows_with_as_many_ends(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """Return the numbers of the rows that can share a batch: all of them, but where a model pools at end-of-text tokens.

    Raises:
        RankwiseError: it does, and a row has none.
    """
    config = getattr(model, "config", None)
    end, every = getattr(config, "eos_token_id", None), [torch.arange(len(ids), device=ids.device)]
    if end is None or getattr(config, "model_type", None) not in END_POOLED:
        return every
    ends = ids.eq(end).sum(1)
    if not ends.all():
        raise RankwiseError(
            f"{type(model).__name__} reads a text at its end-of-text token (id {end}), and its tokenizer puts none behind a text."
        )
    if ends.eq(ends[0]).all():
        return every
    return [ends.eq(n).nonzero().squeeze(1) for n in ends.unique().tolist()]


def pool_rows(model: nn.Module, layout: Callable[[], Layout]) -> RemovableHandle | None:
    """Have a packed model's encoder return [rows, 1, d] instead of [1, tokens, d].

    Args:
        model: a Transformers sequence classifier.
        layout: returns the layout of the current batch.

    Returns:
        A handle whose `remove` undoes it; None for causal models, whose rows `packed_logits` pools, and for models with logits of
        each token.
    """
    if hasattr(model, "score") or task_type(model) in PER_TOKEN:
        return None
    hf = cast(Any, model)
    # ModernBERT's config says how its head pools. In other families the pooler is behind the `encoder`.
    mean = getattr(hf.config, "classifier_pooling", "cls") == "mean"

    def swap(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden, rows = output.last_hidden_state[0], layout()
        pooled = _mean(hidden, rows) if mean else hidden[rows.cu_seqlens[:-1]]
        output.last_hidden_state = pooled.unsqueeze(1)
        return output

    return getattr(hf.base_model, "encoder", hf.base_model).register_forward_hook(swap)


def _mean(hidden: Float[Tensor, "tokens d"], layout: Layout) -> Float[Tensor, "rows d"]:
    lengths = layout.cu_seqlens.diff()
    row = torch.repeat_interleave(torch.arange(len(layout), device=hidden.device), lengths)
    total = hidden.new_zeros(len(layout), hidden.shape[1]).index_add(0, row, hidden)
    return total / lengths.unsqueeze(1)


def _last(batch: PackedBatch, pad_id: int | None) -> Tensor:
    """Return the last token of each row that isn't `pad_id`, which may be the end-of-text token."""
    first, end = batch.cu_seqlens[:-1], batch.cu_seqlens[1:]
    if pad_id is None:
        return end - 1
    place = torch.arange(batch.tokens, device=first.device)
    real = torch.where(batch.input_ids[0, : batch.tokens] != pad_id, place, -1).cummax(0).values
    return torch.maximum(real[end - 1], first)
