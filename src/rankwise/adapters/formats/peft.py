"""PEFT's format, with notes on what vLLM accepts.

Source: vLLM's `lora/peft_helper.py` (one r and one lora_alpha for all layers in earlier versions; DoRA refused; modules_to_save refused,
and from pull request 53555 on accepted for `score` and `classifier` of sequence classifiers) and `config/lora.py` (`MaxLoRARanks`).
"""

from rankwise.adapters import peft_format
from rankwise.adapters.adapter import Adapter
from rankwise.adapters.formats.format import ExportFormat

MAX_RANK = 16
"""vLLM's default of `max_lora_rank`."""
MAX_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What every version of vLLM takes as `max_lora_rank`."""
SERVED_HEADS = {"score", "classifier"}
"""Heads that later versions of vLLM load."""


def notes(adapter: Adapter) -> tuple[str, ...]:
    """Say what servers would refuse or misread."""
    lines, ranks = [], set(adapter.ranks.values())
    highest = max(ranks)
    if len(ranks) > 1:
        lines.append(
            f"Ranks go from {min(ranks)} to {highest}. PEFT reads that; many servers take one rank and alpha for all layers: "
            f"`serve=True` writes rank {highest} for all, padded with zeros."
        )
    elif highest > MAX_RANK:
        lines.append(
            f"vLLM takes ranks up to {MAX_RANK} unless started with a larger --max-lora-rank ({highest} here)."
        )
    return (*lines, *_about_modules(adapter))


def served_with(adapter: Adapter) -> tuple[str, ...]:
    """Say with which `max_lora_rank` vLLM serves an adapter of one rank, and what it would refuse."""
    (rank,) = set(adapter.ranks.values())
    fits = next((size for size in MAX_RANKS if size >= rank), None)
    if fits is None:
        line = f"vLLM takes ranks up to {MAX_RANKS[-1]}: export with `uniform_rank={MAX_RANKS[-1]}`."
    else:
        line = f"All layers have rank {rank} and alpha {rank}. vLLM needs --max-lora-rank {fits} or more; its default is {MAX_RANK}."
    return (line, *_about_modules(adapter))


def _about_modules(adapter: Adapter) -> tuple[str, ...]:
    if not adapter.modules_to_save:
        return ()
    heads = ", ".join(adapter.modules_to_save)
    served = set(adapter.modules_to_save) <= SERVED_HEADS
    return (
        f"The file holds trained modules ({heads}). vLLM {'serves them only in later versions' if served else 'never serves them'}: "
        "leave them out with `head=False`, or serve the merged model (rankwise merge).",
    )


FORMAT = ExportFormat("peft", peft_format.write, notes=notes)
