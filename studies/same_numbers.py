"""Are two grids the same to the last bit? Run the same command with two versions of the code, then compare the folders.

    rankwise compare --tasks movies --methods full lora adaptive peft:adalora --seeds 1 --epochs 1 --threads 1 --keep-models --out before
    (check out the other version, and the same command with --out after)
    python studies/same_numbers.py before after

Compared are what a run decides and leaves: scores, ranks, counts, losses, learning rates and gradient norms of every step, rank decisions,
predictions, and the bytes of the trained weights. Times, memory and words may differ. Exits with 1 where something else does.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULT = (
    *("score", "scores", "rank", "mean_rank", "steps", "lr", "n_train", "n_validation"),
    *("trainable_params", "adapter_params", "held_out_passes_rows"),
)
STEP = ("step", "loss", "lr", "grad_norm", "rows", "tokens")
DECISION = ("step", "accepted", "changes", "ranks")
WEIGHTS = ("predictions.parquet", "adapter_model.safetensors", "model.safetensors")


def main(before: Path, after: Path) -> int:
    """Prints every difference; returns the number of them."""
    found = 0
    runs = sorted({file.parent.name for folder in (before, after) for file in folder.glob("*/result.json")})
    if not runs:
        print(f"Neither {before} nor {after} has a finished run.")
        return 1
    for run in runs:
        lines = list(differences(before / run, after / run))
        found += len(lines)
        print(f"{run}: {'; '.join(lines) or 'the same'}")
    return found


def differences(one: Path, other: Path) -> Iterator[str]:
    """What differs between two run folders."""
    if missing := [folder for folder in (one, other) if not (folder / "result.json").is_file()]:
        yield f"no result in {missing[0]}"
        return
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (one, other))
    yield from (f"result.json, {key}" for key in RESULT if first[key] != second[key])
    for name, keys in (("steps.jsonl", STEP), ("ranks.jsonl", DECISION)):
        if _lines(one / name, keys) != _lines(other / name, keys):
            yield name
    for name in WEIGHTS:
        if _digest(one / name) != _digest(other / name):
            yield name


def _lines(file: Path, keys: tuple[str, ...]) -> list[dict[str, Any]] | None:
    if not file.is_file():
        return None
    return [{key: json.loads(line).get(key) for key in keys} for line in file.read_text().splitlines()]


def _digest(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python studies/same_numbers.py BEFORE AFTER")
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])) > 0)
