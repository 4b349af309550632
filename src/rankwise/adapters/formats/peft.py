"""PEFT's format, with notes on what vLLM accepts.

Source: vLLM's `lora/peft_helper.py` (one r and one lora_alpha for all layers; DoRA refused; modules_to_save refused, and from pull request
53555 on accepted for `score` and `classifier` of sequence classifiers) and `config/lora.py` (`max_lora_rank`).
"""

from rankwise.adapters import peft_format
from rankwise.adapters.adapter import Adapter
from rankwise.adapters.formats.format import ExportFormat

MAX_RANK = 16
"""vLLM's default of `max_lora_rank`."""
SERVED_HEADS = {"score", "classifier"}
"""Heads that later versions of vLLM load."""


def notes(adapter: Adapter) -> tuple[str, ...]:
    """Say what vLLM would refuse."""
    lines, ranks = [], set(adapter.ranks.values())
    highest = max(ranks)
    if len(ranks) > 1:
        lines.append(
            f"Ranks go from {min(ranks)} to {highest}. PEFT reads that; vLLM takes one rank and alpha for all layers: "
            f"`uniform_rank={highest}` pads with zeros."
        )
    elif highest > MAX_RANK:
        lines.append(
            f"vLLM takes ranks up to {MAX_RANK} unless started with a larger --max-lora-rank ({highest} here)."
        )
    if adapter.modules_to_save:
        heads = ", ".join(adapter.modules_to_save)
        served = set(adapter.modules_to_save) <= SERVED_HEADS
        lines.append(
            f"The file holds trained modules ({heads}). vLLM {'serves them only in later versions' if served else 'never serves them'}: "
            "leave them out with `head=False`, or serve the merged model (rankwise merge)."
        )
    return tuple(lines)


FORMAT = ExportFormat("peft", peft_format.write, notes=notes)
