"""Objectives: what a model learns from its labels. To add one, write a subclass of `Objective` and put it into `OBJECTIVES`.

    classification   logits [rows, classes]   labels int64 [rows]              cross-entropy          predicts the highest logit
    multi-label      logits [rows, labels]    labels float32 [rows, labels]    binary cross-entropy   predicts every logit above 0
    regression       logits [rows, 1]         labels float32 [rows]            squared error          predicts the logit itself
    tokens           logits [words, tags]     labels int64 [words]             cross-entropy          predicts the highest logit
    generation       logits [tokens, words]   labels int64 [tokens]            cross-entropy          its loss on each row is evaluated

An objective owns everything that differs between them: the labels' form in a table, in Python and as numbers, the loss, the prediction, the
metrics, and what Transformers and PEFT call it. The rest of the code holds an `Objective` and never asks which one it is.
"""

from typing import TYPE_CHECKING

from rankwise.errors import RankwiseError, nearest
from rankwise.tasks.objectives.objective import Objective
from rankwise.tasks.objectives.of_rows import Classification, MultiLabel, Regression
from rankwise.tasks.objectives.of_tokens import Generation, Tokens

if TYPE_CHECKING:
    import torch  # for its types alone: the grid's own process reads tasks and needs no torch

__all__ = [
    "OBJECTIVES",
    "Classification",
    "Generation",
    "MultiLabel",
    "Objective",
    "Regression",
    "Tokens",
    "named",
    "of_config",
    "of_model",
]

OBJECTIVES: dict[str, Objective] = {
    o.name: o for o in (Classification(), MultiLabel(), Regression(), Generation(), Tokens())
}
"""By name."""


def named(name: str) -> Objective:
    """Return the objective of that name.

    Raises:
        RankwiseError: there is none; the message gives the nearest.
    """
    if name not in OBJECTIVES:
        raise RankwiseError(f"There is no problem {name!r}.{nearest(name, OBJECTIVES)}")
    return OBJECTIVES[name]


def of_model(model: "torch.nn.Module") -> Objective:
    """Return what a Transformers model is for: by its class, and by its config where it classifies."""
    from rankwise.models.families import task_type

    said = task_type(model)
    found = next((o for o in OBJECTIVES.values() if o.task_type == said != "SEQ_CLS"), None)
    return found or of_config(getattr(model, "config", None))


def of_config(config: object) -> Objective:
    """Return the objective that the config of a classifier says it is for. Without a word about it, one output is a number."""
    said = getattr(config, "problem_type", None)
    found = next((o for o in OBJECTIVES.values() if o.problem_type == said), None)
    return found or OBJECTIVES["regression" if getattr(config, "num_labels", 2) == 1 else "classification"]
