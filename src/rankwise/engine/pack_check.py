"""Whether a model can be trained packed, found out by running two short rows on it.

    [row 1 | row 2] packed   =   [row 1], [row 2] alone       packing leaves the logits as they are
    row 1 of [row 1 | row 2] =   row 1 of [row 1 | other]     rows don't see each other

Both are asked of the logits, to rounding.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankwise.engine.packed_mode import packed
from rankwise.engine.packing import pack
from rankwise.engine.pooling import packed_logits
from rankwise.errors import RankwiseError
from rankwise.models.families import PER_TOKEN, task_type
from rankwise.tasks.encoding import Encoded


def can_pack(model: nn.Module) -> tuple[bool, str]:
    """Return whether a model can be trained packed, and if not, why, as the end of a sentence.

    It is tested on two short rows. Packed and alone they must give the same logits, and a packed row must not depend on the other.
    """
    hf, name = cast(Any, model), type(model).__name__
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return False, "a prompt method of PEFT puts its virtual tokens before each row"
    if not isinstance(model, PreTrainedModel):
        return False, f"{name} is not a Transformers model"
    if hf.config.is_encoder_decoder:
        return False, f"{name} has an encoder and a decoder"
    if not hf._supports_attention_backend:
        return False, f"the attention of {name} doesn't go through Transformers' attention registry"
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        return _self_check(model)
    except (RankwiseError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as problem:
        return False, f"a packed pass of {name} failed: {problem}"
    finally:
        for module in was_training:
            module.training = True


@torch.no_grad()
def _self_check(model: nn.Module) -> tuple[bool, str]:
    """Run a short and a longer row packed, each alone, and each packed beside other tokens; return as `can_pack`."""
    hf, name = cast(Any, model), type(model).__name__
    parameter = next(model.parameters())
    rows = _probe_rows(model)

    per_token = task_type(model) in PER_TOKEN
    first = slice(0, len(rows[0]) if per_token else 1)
    second = slice(first.stop, None)

    def together(*pair: np.ndarray) -> Tensor:
        ids = np.concatenate(pair).astype(np.int32)
        probe = Encoded(
            input_ids=ids,
            offsets=np.cumsum([0, *map(len, pair)]),
            token_type_ids=None,
            labels=None,
            idx=np.arange(2),
            n_truncated=0,
            token_labels=np.zeros(len(ids), np.int64) if per_token else None,
        )
        with packed(model):
            batch = pack(probe, np.arange(2), model=model, key=(0,))
            return packed_logits(model, batch.to(parameter.device)).double()

    def alone(row: np.ndarray) -> Tensor:
        ids = torch.from_numpy(row)[None].to(parameter.device)
        logits = hf(ids, attention_mask=torch.ones_like(ids)).logits.double()
        return logits[0] if per_token else logits

    ours = together(*rows)
    leak = max(
        float((together(rows[0], rows[1][::-1])[first] - ours[first]).norm()),
        float((together(rows[0][::-1], rows[1])[second] - ours[second]).norm()),
    )
    norm, eps = float(ours.norm()), torch.finfo(parameter.dtype).eps
    if not leak <= eps * norm:
        return False, f"packed rows of {name} see each other outside attention"
    error = float((torch.cat([alone(row) for row in rows]) - ours).norm())
    if not error <= max(eps**0.5, 1e-5) * norm:
        return False, f"packed and single rows of {name} differ by {error / norm:.1g} of their logits"
    return True, ""


def _probe_rows(model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Return two rows of distinct tokens without padding. The second is longer than a short sliding window."""
    windows = [w for m in model.modules() if isinstance(w := getattr(m, "sliding_window", None), int)]
    longer = max([12, *(w + 4 for w in windows if w <= 128)])
    config = cast(Any, model).config.get_text_config()
    usable = np.setdiff1d(np.arange(min(config.vocab_size, 1000)), [config.pad_token_id or 0])
    ids = np.resize(usable, 7 + longer)
    return ids[:7], ids[7:]
