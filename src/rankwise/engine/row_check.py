"""Check, before a model is trained or run on rows, that it takes them: its tables have every token, token type and position.

A table that is too short would stop the run in the middle, on a GPU without saying where.
"""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from rankwise.engine.packing import pad
from rankwise.errors import ProcessLost, RankwiseError, first_line
from rankwise.models.families import task_type
from rankwise.tasks.encoding import Encoded


def check(model: nn.Module, rows: Encoded) -> None:
    """Check that a model takes rows.

    Where the model is on a CPU, the longest row is run through its first layer as Transformers runs it.

    Args:
        model: a Transformers model; others aren't checked.
        rows: as token ids.

    Raises:
        RankwiseError: a token or token type beyond the model's tables, the longest row is too long, or a language model that sees the
            tokens it has to predict.
    """
    if not isinstance(model, PreTrainedModel) or not len(rows):
        return
    with contextlib.suppress(NotImplementedError):  # Canine has several tables, in which it hashes characters
        _check_ids(rows, rows.input_ids, _rows_of(model.get_input_embeddings()), "token", "vocabulary")
    if rows.token_type_ids is not None and _takes_types(model):
        table = next((m for path, m in model.named_modules() if path.endswith("token_type_embeddings")), None)
        _check_ids(rows, rows.token_type_ids, _rows_of(table), "token type", "table of token types")
    if model.device.type == "cpu":
        _run_longest(model, rows)
    if rows.token_labels is not None and task_type(model) == "CAUSAL_LM":
        _check_ids(rows, rows.token_labels, _rows_of(model.get_output_embeddings()), "token", "head")
        _check_causal(model, rows)


@contextlib.contextmanager
def refused_by_name(model: nn.Module) -> Iterator[None]:
    """Turn what a model's own code raises into an error that names the model, for a block of code.

    Raises:
        RankwiseError: instead of any other exception but a lack of memory or of a process.
    """
    try:
        yield
    except (RankwiseError, ProcessLost, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # Transformers has a hundred classifiers, and each raises its own
        if "can't allocate memory" in str(error):
            raise
        why = first_line(error).rstrip(".")
        raise RankwiseError(f"{type(model).__name__} can't be run on these rows ({why}).") from error


def _rows_of(table: Any) -> int | None:
    weight = getattr(table, "weight", None)  # Perceiver's table is no module
    return None if weight is None else int(weight.shape[0])


def _takes_types(model: nn.Module) -> bool:
    return "token_type_ids" in inspect.signature(model.forward).parameters


def _check_ids(rows: Encoded, ids: np.ndarray, size: int | None, what: str, where: str) -> None:
    if size is None or not len(ids) or int(ids.max()) < size:
        return
    row = int(np.searchsorted(rows.offsets, ids.argmax(), side="right")) - 1
    raise RankwiseError(
        f"Row {rows.idx[row]} has the {what} {ids.max()}, but the {where} of this model has {size:,}: the tokenizer isn't the model's own."
    )


@torch.no_grad()
def _run_longest(model: PreTrainedModel, rows: Encoded) -> None:
    """Run the longest row until the second layer begins."""
    longest = int(np.argmax(rows.lengths))
    inputs: dict[str, Any] = pad(rows, np.array([longest]), 0)
    inputs.pop("labels", None)
    if not _takes_types(model):
        inputs.pop("token_type_ids", None)
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with refused_by_name(model), _first_layer_alone(model), contextlib.suppress(_Enough):
            try:
                cast(Any, model)(**inputs)
            except (IndexError, RuntimeError) as error:
                raise RankwiseError(
                    f"{type(model).__name__} doesn't take a text of {rows.lengths[longest]} tokens (row {rows.idx[longest]}): "
                    f"{str(error).strip().splitlines()[0]}. Give a smaller `max_length=`."
                ) from None
    finally:
        for module in was_training:
            module.training = True


@torch.no_grad()
def _check_causal(model: PreTrainedModel, rows: Encoded) -> None:
    """Check that logits don't depend on tokens behind them, as they do in an encoder with a language model's head."""
    first = int(rows.offsets[np.argmax(rows.lengths)])
    ids = torch.from_numpy(rows.input_ids[first : first + min(8, int(rows.lengths.max()))].astype(np.int64))
    other = ids.clone()
    other[-1] = (ids[-1] + 1) % cast(Any, model).config.get_text_config().vocab_size
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with refused_by_name(model):
            both = [cast(Any, model)(x[None].to(model.device)).logits[0, :-1].double() for x in (ids, other)]
    finally:
        for module in was_training:
            module.training = True
    if len(both[0]) and (both[0] - both[1]).norm() > 1e-3 * both[0].norm():
        raise RankwiseError(
            f"{type(model).__name__} sees the tokens that it has to predict, as encoders do. Take a causal language model."
        )


class _Enough(Exception):
    """The first layer is done."""


@contextlib.contextmanager
def _first_layer_alone(model: nn.Module) -> Iterator[None]:
    """Stop a model's forward pass where its second layer begins, in a `with` block."""

    def stop(*_: Any) -> None:
        raise _Enough

    layers = next((m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1), None)
    if layers is None:
        yield
        return
    handle = layers[1].register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()
