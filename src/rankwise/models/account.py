"""Account for every key of a checkpoint and for every weight of the model that it was loaded into.

    a key of the file       taken │ of a head or pooler that this classifier doesn't have: unused │ else the checkpoint is refused
    a weight of the model   there │ of the head, or of a pooler that isn't there at all: new      │ else the checkpoint is refused

New weights are drawn at random, so they are for training alone: `check_whole` refuses them wherever a model's answers are asked for.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rankwise.errors import RankwiseError
from rankwise.models.families import body_and_heads

POOLER = "pooler"
"""The part of a body that only some pretraining tasks train, so that a checkpoint may lack it or have it in vain."""
OLD_BUFFERS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias|attention\.bias|(en|de)coder\.version)$"
)
"""Constants that earlier versions of Transformers wrote beside the weights."""
LORA = ("lora_A", "lora_B", "lora_scaling")
"""Entries that `lora.layer.LoRALinear` adds to a state dict, beside weight and bias."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Account:
    """How a checkpoint and a model differ, in ways that training may begin with; `account` refuses all others.

    Attributes:
        new: weights that were drawn, because the checkpoint doesn't have them or has them in another size.
        modules: paths of the modules outside the head that they are in.
        unused: parts of the checkpoint that the model has no module for.
        resized: of the new weights those that the checkpoint has in another size: name → shapes there and here.
        other_task: the class of the checkpoint's head, where it is for another task.
        adapted: paths of layers to which the checkpoint has LoRA matrices, as `save_pretrained` writes an adapted model.
    """

    new: frozenset[str] = frozenset()
    modules: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    resized: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)
    other_task: str | None = None
    adapted: tuple[str, ...] = ()

    def in_words(self) -> str:
        """Return sentences on which weights aren't pretrained and which aren't used; empty where there are none."""
        sentences = []
        if head := sorted(self.new - set(self.inside(self.new))):
            sentences.append(f"The head is new ({listed(head)}): {self._why_new(head)}.")
        if self.modules:
            sentences.append(f"Also new: {listed(self.modules)}, which the checkpoint doesn't have.")
        if self.unused:
            sentences.append(f"Not used of the checkpoint: {listed(self.unused)}.")
        return " ".join(sentences)

    def inside(self, names: Iterable[str]) -> list[str]:
        """Return those of some weights that are in `modules`."""
        return [name for name in names if name.startswith(tuple(f"{path}." for path in self.modules))]

    def _why_new(self, head: Sequence[str]) -> str:
        if self.other_task is not None:
            return f"the checkpoint's is that of a {self.other_task}"
        name = next((name for name in head if name in self.resized), None)
        if name is None:
            return "the checkpoint has none"
        there, here = self.resized[name]
        return f"the checkpoint's has {there[0]} outputs and not {here[0]}"


def account(model: PreTrainedModel, info: Mapping[str, Any], place: str) -> Account:
    """Sort what Transformers reports on loading a classifier.

    Args:
        model: as loaded.
        info: `missing_keys`, `unexpected_keys`, `mismatched_keys`.
        place: the checkpoint's folder or name, for messages.

    Raises:
        RankwiseError: the checkpoint lacks weights of the pretrained body or has them in another size, or has weights inside the model's
            modules that these don't take.
    """
    body, heads = body_and_heads(model)
    prefix = f"{model.base_model_prefix}." if body is not model else ""
    resized = {str(name): (tuple(there), tuple(here)) for name, there, here in info["mismatched_keys"]}
    missing = {str(name) for name in info["missing_keys"]}
    pooler = _whole_pooler(model, prefix, missing)
    new_heads = {name.split(".")[0] for name in missing | resized.keys()} & set(heads)
    adapted, rest = _adapted(model, {str(key) for key in info["unexpected_keys"]})
    unused = _unused(model, body, prefix, new_heads, sorted(rest), place)
    if wrong := sorted(name for name in resized if name.startswith(prefix or "\0")):
        there, here = resized[wrong[0]]
        raise RankwiseError(
            f"The weights in {place} don't fit its config.json: {wrong[0]} is {list(there)} in the weights and {list(here)} by the config"
            f"{_and_more(wrong)}. Take both from the same model."
        )
    if lacking := sorted(name for name in missing - pooler if name.startswith(prefix or "\0")):
        raise RankwiseError(
            f"The weights in {place} aren't whole: {listed(lacking)} of {type(model).__name__} isn't among them. "
            "Download or save the model again."
        )
    drawn = {path for name in missing | resized.keys() if (path := name.rpartition(".")[0])}
    new = {f"{path}.{name}" for path in drawn for name, _ in _own_weights(model, path)}
    modules = sorted(path for path in drawn if prefix and path.startswith(prefix))
    return Account(frozenset(new), tuple(modules), tuple(unused), resized, adapted=tuple(adapted))


def _own_weights(model: nn.Module, path: str) -> Iterable[tuple[str, Any]]:
    return model.get_submodule(path).named_parameters(recurse=False)


def _whole_pooler(model: nn.Module, prefix: str, missing: set[str]) -> set[str]:
    """Return the weights of the body's pooler if the checkpoint has none of them."""
    weights = {name for name, _ in model.named_parameters() if name.startswith(f"{prefix}{POOLER}.")}
    return weights if prefix and weights <= missing else set()


def _adapted(model: nn.Module, keys: set[str]) -> tuple[list[str], set[str]]:
    """Return the paths of layers that have all that a LoRA layer writes, and the other keys."""
    paths = [
        path
        for path, _ in model.named_modules()
        if path and keys.issuperset(f"{path}.{name}" for name in LORA)
    ]
    return paths, keys - {f"{path}.{name}" for path in paths for name in LORA}


def _unused(
    model: nn.Module, body: nn.Module, prefix: str, new_heads: set[str], keys: Sequence[str], place: str
) -> list[str]:
    """Return the parts of a checkpoint that belong to modules this model doesn't have, such as another task's head.

    Parts of a head that the checkpoint doesn't have whole are unused, too.

    Raises:
        RankwiseError: a key lies inside a module that the model does have.
    """
    unused, inside = [], []
    for key in keys:
        if OLD_BUFFERS.search(key):
            continue
        bare = key.removeprefix(prefix)
        child = bare.split(".")[0]
        owner = body if bare != key or child not in model._modules else model
        if child in owner._modules and (owner is body or child not in new_heads):
            inside.append(key)
        else:
            unused.append(f"{prefix if bare != key else ''}{child}")
    if not inside:
        return list(dict.fromkeys(unused))
    name = type(model).__name__
    if lora := [key for key in inside if "lora_" in key]:
        raise RankwiseError(
            f"{place} holds a model with LoRA layers in it ({listed(lora)}) that don't say all that it computes. "
            "Load these weights into the adapted model (`rankwise.adapt`, `load_state_dict`) and write it by `rankwise.save`."
        )
    raise RankwiseError(
        f"{name} by the config.json of {place} doesn't take {listed(inside)} of its weights, so it would compute something else. "
        "Take both from the same model."
    )


def check_whole(
    account: Account, given: Iterable[str], what: str, remedy: str = "Train it first with `rankwise train`."
) -> None:
    """Check that no weight of a model whose answers are asked for was drawn at random.

    Args:
        account: of the checkpoint.
        given: weights that come from elsewhere, such as an adapter's head.
        what: the model, to begin the message.
        remedy: to end it.

    Raises:
        RankwiseError: some were.
    """
    if lacking := sorted(account.new - set(given)):
        head = [name for name in lacking if name not in account.inside(lacking)]
        part = "no head" if head else "no pooler"
        sizes = next((account.resized[name] for name in lacking if name in account.resized), None)
        why = (
            ""
            if sizes is None
            else f" The one in its weights has {sizes[0][0]} outputs, {sizes[1][0]} are asked for."
        )
        if account.other_task is not None:
            why = f" The weights are those of a {account.other_task}."
        raise RankwiseError(
            f"{what} has {part} ({listed(lacking)}), so its answers would be random.{why} {remedy}"
        )


def listed(names: Sequence[str]) -> str:
    """Return up to three names, and how many more there are."""
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
