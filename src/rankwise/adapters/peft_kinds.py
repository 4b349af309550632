"""Adapters of PEFT's other kinds (IA³, prompt tuning, AdaLoRA …), which PEFT itself puts onto their base."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from rankwise.adapters import peft_config
from rankwise.errors import RankwiseError
from rankwise.lora import names
from rankwise.lora.inject import train_beside
from rankwise.models import loading
from rankwise.models.families import body_and_heads

COPIES = (".modules_to_save.", ".original_module.")
"""Parts of names: under `bias="all"` PEFT writes a head's bias again under these."""


def load(model: PreTrainedModel, folder: Path) -> nn.Module:
    """Put an adapter of any of PEFT's kinds onto its base, for inference.

    Args:
        model: the base; changed in place.
        folder: of the adapter.

    Returns:
        The model, or PEFT's wrapper of it where the adapter adds virtual tokens.

    Raises:
        RankwiseError: a pattern takes too long; PEFT can't put the adapter onto this model, takes only a part of it, or would compute
            something else than in training.
    """
    config = peft_config.read(folder / peft_config.FILE)
    names.check_bounded(config.patterns, [path for path, _ in model.named_modules()])
    if why := config.unrepeatable():
        raise RankwiseError(
            f"{folder} {why}. Save it with PEFT's path_initial_model_for_weight_conversion, which makes plain LoRA of it."
        )
    train_beside(model, body_and_heads(model)[1])
    with peft_errors(folder.name, model):
        wrapper = PeftModel.from_pretrained(model, str(folder))
        # It is loaded again, because only `load_adapter` returns which keys had no place. AdaLoRA's layers have the ranks of the file
        # by now, so that it can't be loaded again.
        if config.peft_type != "ADALORA":
            _check_whole(folder, wrapper, wrapper.load_adapter(str(folder), "default"))
    wrapper.eval()
    inside = wrapper if wrapper.active_peft_config.is_prompt_learning else wrapper.get_base_model()
    return cast(nn.Module, inside)


def _check_whole(folder: Path, wrapper: PeftModel, loaded: Any) -> None:
    """Check that PEFT found a place for every tensor of the file, and a tensor for every place."""
    if wrapper.active_peft_config.is_prompt_learning:  # its tensors aren't the model's
        return
    unexpected = [key for key in sorted(loaded.unexpected_keys) if not any(copy in key for copy in COPIES)]
    if unexpected:
        model = type(wrapper.get_base_model()).__name__
        raise RankwiseError(
            f"The adapter in {folder} holds {unexpected[0]:.200}, which PEFT finds no place for in {model}."
        )
    if loaded.missing_keys:
        raise RankwiseError(
            f"The adapter in {folder} is damaged: {min(loaded.missing_keys):.200} is missing. {peft_config.REMEDY}"
        )


@contextlib.contextmanager
def peft_errors(name: str, model: nn.Module) -> Iterator[None]:
    """Turn PEFT's exceptions into a RankwiseError of one sentence, and keep its warnings off the terminal."""
    try:
        with warnings.catch_warnings(), loading.quiet():
            warnings.simplefilter("ignore")
            yield
    except RankwiseError:
        raise
    except Exception as error:  # whatever a file holds reaches PEFT's code
        said = " ".join(line.strip() for line in str(error).splitlines()[:2])
        said = said if said.strip("' ") else type(error).__name__
        raise RankwiseError(f"PEFT refuses {name} on {type(model).__name__}: {said:.300}") from error
