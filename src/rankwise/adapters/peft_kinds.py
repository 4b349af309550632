"""Adapters of PEFT's other kinds (IA³, prompt tuning, AdaLoRA …), which PEFT itself puts onto their base."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from rankwise.errors import RankwiseError
from rankwise.lora.inject import train_beside
from rankwise.models import loading
from rankwise.models.families import body_and_heads


def load(model: PreTrainedModel, folder: Path) -> nn.Module:
    """Put an adapter of any of PEFT's kinds onto its base, for inference.

    Args:
        model: the base; changed in place.
        folder: of the adapter.

    Returns:
        The model, or PEFT's wrapper of it where the adapter adds virtual tokens.

    Raises:
        RankwiseError: PEFT can't put it onto this model.
    """
    train_beside(model, body_and_heads(model)[1])
    with peft_errors(folder.name, model):
        wrapper = PeftModel.from_pretrained(model, str(folder))
    wrapper.eval()
    inside = wrapper if wrapper.active_peft_config.is_prompt_learning else wrapper.get_base_model()
    return cast(nn.Module, inside)


@contextlib.contextmanager
def peft_errors(name: str, model: nn.Module) -> Iterator[None]:
    """Turn PEFT's exceptions into a RankwiseError of one sentence, and keep its warnings off the terminal."""
    try:
        with warnings.catch_warnings(), loading.quiet():
            warnings.simplefilter("ignore")
            yield
    except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError, AttributeError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RankwiseError(f"PEFT refuses {name} on {type(model).__name__}: {line}") from error
