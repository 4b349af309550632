"""Writes a run's curves as TensorBoard's event files, in the folder `tensorboard/` of the run (`tensorboard=`, an optional extra).

Curves are for people: where they can't be written that is reported once, and the run goes on without them.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankwise.errors import RankwiseError
from rankwise.runs.events import Emit, optional

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
        emit: told what can't be written.
        folder: of the run.
        step: the last step of the checkpoint; what an interrupted run wrote after it is removed.
    """

    def __init__(self, emit: Emit, folder: Path | None = None, step: int = 0) -> None:
        self._emit, self._writer = emit, None
        if folder is None:
            return
        with self._writing():
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and optional

            self._writer = SummaryWriter(
                str(folder / "tensorboard"), purge_step=step + 1, flush_secs=FLUSH_SECONDS
            )

    def step(self, line: dict[str, Any]) -> None:
        """Adds a line of steps.jsonl: training under `train/`, scores under `validation/`."""
        if self._writer is None:
            return
        scalars = {f"train/{name}": line.get(name) for name in ("loss", "lr", "grad_norm")}
        if line.get("seconds"):
            scalars["train/rows_per_second"] = line["rows"] / line["seconds"]
        if "held_out_loss" in line:
            scalars["held_out/loss"] = line["held_out_loss"]
        scalars |= {f"validation/{name}": value for name, value in line.get("validation", {}).items()}
        with self._writing() as writer:
            for tag, value in scalars.items():
                if value is not None:
                    writer.add_scalar(tag, value, line["step"])

    def close(self, step: int, scores: dict[str, dict[str, float]]) -> None:
        """Adds the final scores of each split, and closes the file."""
        if self._writer is None:
            return
        with self._writing() as writer:
            for split, values in scores.items():
                for name, value in values.items():
                    writer.add_scalar(f"final {split}/{name}", value, step)
            writer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Any]:
        """Give the writer to a `with` block. After an error in it there is none any more."""
        writer, self._writer = self._writer, None
        with optional("The curves for TensorBoard", self._emit):
            yield writer
            self._writer = self._writer or writer
