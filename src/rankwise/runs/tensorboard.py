"""Writes a run's curves as TensorBoard's event files, in the folder `tensorboard/` of the run (`--tensorboard`, an optional extra)."""

import importlib.util
from pathlib import Path
from typing import Any

from rankwise.errors import RankwiseError

FLUSH_SECONDS = 5
"""Time between two writes of the file."""


def check() -> None:
    """Refuses `tensorboard=` if the package isn't installed.

    Raises:
        RankwiseError: saying how to install it.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise RankwiseError(
            "`tensorboard=` needs the package tensorboard. Install it (pip install 'rankwise[tensorboard]'), or leave the option out."
        )


class Board:
    """Writes a run's steps; without a folder it does nothing.

    Args:
        folder: of the run.
        step: the last step of the checkpoint; what an interrupted run wrote after it is removed.
    """

    def __init__(self, folder: Path | None = None, step: int = 0) -> None:
        self._writer = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and optional

            self._writer = SummaryWriter(
                str(folder / "tensorboard"), purge_step=step + 1, flush_secs=FLUSH_SECONDS
            )

    def step(self, line: dict[str, Any]) -> None:
        """Adds a line of steps.jsonl: training under `train/`, scores under `validation/`."""
        if self._writer is None:
            return
        scalars = {f"train/{name}": line[name] for name in ("loss", "lr", "grad_norm") if name in line}
        if line.get("seconds"):
            scalars["train/rows_per_second"] = line["rows"] / line["seconds"]
        if "held_out_loss" in line:
            scalars["held_out/loss"] = line["held_out_loss"]
        scalars |= {f"validation/{name}": value for name, value in line.get("validation", {}).items()}
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, line["step"])

    def close(self, step: int, scores: dict[str, dict[str, float]]) -> None:
        """Adds the final scores of each split, and closes the file."""
        if self._writer is None:
            return
        for split, values in scores.items():
            for name, value in values.items():
                self._writer.add_scalar(f"final {split}/{name}", value, step)
        self._writer.close()
