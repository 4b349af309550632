"""How runs were trained, in words: model, recipe, precision, machine and versions."""

from collections.abc import Iterable, Mapping
from typing import Any


def of_run(record: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, str]:
    """Describe one run.

    Args:
        record: its run.json.
        result: its result.json.

    Returns:
        Name → setting.
    """
    resolved, facts = record.get("resolved"), record.get("facts") or {}
    hardware, versions = record.get("hardware") or {}, record.get("versions") or {}
    shown: dict[str, str] = {"model": result["model"]}
    if resolved:
        train = resolved["train"]
        shown |= {
            "recipe": train["recipe"],
            "training": f"{train['epochs']:g} epochs, batches of {train['batch_size']}, {train['optimizer']}, "
            f"{train['schedule']} schedule, {_warmup(train)}, weight decay {train['weight_decay']:g}",
            "learning rate": f"{train['lr']:g}",
        }
    return shown | {
        "computed in": f"{facts.get('dtype')}, {facts.get('padding')} batches, {facts.get('threads')} threads",
        "machine": f"{hardware.get('processor')}, {hardware.get('cores')} cores, {hardware.get('device')}",
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }


def _warmup(train: Mapping[str, Any]) -> str:
    least = train.get("warmup_steps")
    return f"warm-up {train['warmup']:g}" + (f" ({least} steps at least)" if least else "")


def of_grid(runs: Iterable[tuple[str, Mapping[str, str]]]) -> dict[str, str]:
    """Describe all runs: a setting that every run shares stands once, others name the cells that have them.

    Args:
        runs: (task and method, settings of the run).
    """
    cells_by_value: dict[str, dict[str, dict[str, None]]] = {}
    for cell, settings in runs:
        for name, value in settings.items():
            cells_by_value.setdefault(name, {}).setdefault(value, {})[cell] = None
    return {
        name: next(iter(values))
        if len(values) == 1
        else "; ".join(f"{', '.join(cells)}: {value}" for value, cells in values.items())
        for name, values in cells_by_value.items()
    }
