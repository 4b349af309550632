"""The loss of each held-out example where a `Trainer` trains and nothing else is given.

classifiers, regressors      the calibrated loss of the objective that the model's config names
causal language models       the mean cross-entropy over an example's labelled tokens, each predicted from those before it
sequence to sequence, token classification      the same, without that shift
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rankwise.errors import RankwiseError
from rankwise.models.families import task_type
from rankwise.tasks.labels import IGNORED
from rankwise.tasks.losses import token_cross_entropy

ExampleLosses = Callable[[nn.Module, dict[str, Any]], Tensor]
"""(model, a collated batch on its device) → the loss of each example."""
Batch = dict[str, Any]


@runtime_checkable
class Examples(Protocol):
    """Examples as a `DataLoader` takes them: a list, or a data set of torch or of Hugging Face."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


def is_language_model(model: nn.Module) -> bool:
    """Return whether a model's outputs are tokens of its vocabulary."""
    return task_type(model) == "CAUSAL_LM" or _encodes_and_decodes(model)


def outputs_of(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """Return the losses [examples] of a batch whose labels are tokens; else its logits and labels.

    Args:
        model: in eval mode.
        batch: collated, with `labels`; where several examples stand in one row, they follow from `position_ids`, which begin at 0.

    Raises:
        RankwiseError: there are no labels, or labels that this model's outputs don't go with.
    """
    if "labels" not in batch:
        raise RankwiseError(f"The held-out examples have no labels; they have: {', '.join(batch)}.")
    labels = batch["labels"]
    # of which an encoder with a decoder makes the decoder's input
    left_out = () if _encodes_and_decodes(model) else ("labels",)
    logits = model(**{name: value for name, value in batch.items() if name not in left_out}).logits
    if logits.ndim != 3:
        return logits.float(), labels
    if task_type(model) == "CAUSAL_LM":
        logits, labels = logits[:, :-1], labels[:, 1:]
    if logits.shape[:2] != labels.shape:
        raise RankwiseError(
            f"Held-out labels {list(labels.shape)} don't go with logits {list(logits.shape)}. Give `losses`."
        )
    positions = batch.get("position_ids")
    if positions is None or len(labels) > 1:
        return (token_cross_entropy(logits, labels),)
    return (_of_one_row(logits, labels, positions[0, -labels.shape[1] :]),)


def _of_one_row(logits: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
    """Return the losses of examples that are packed into one row; each begins at position 0."""
    starts = (positions == 0).nonzero().flatten().tolist()
    sizes = [stop - start for start, stop in zip([0, *starts], [*starts, len(positions)], strict=True)]
    parts = zip(logits[0].split(sizes), labels[0].split(sizes), strict=True)
    losses = [token_cross_entropy(z[None], y[None]) for z, y in parts if (y != IGNORED).any()]
    return torch.cat(losses) if losses else logits.new_zeros(0)


def _encodes_and_decodes(model: nn.Module) -> bool:
    """Return whether a model, in PEFT's wrapper or not, has an encoder and a decoder."""
    inner = getattr(model, "get_base_model", None)
    base = inner() if callable(inner) else model
    return bool(getattr(getattr(base, "config", None), "is_encoder_decoder", False))
