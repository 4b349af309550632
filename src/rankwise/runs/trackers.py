"""Reports a run's curves to where people keep their runs: TensorBoard, Weights & Biases, MLflow, Trackio (`report_to=`).

Curves are for people: where they can't be written that is reported once, and the run goes on without them.
To add a tracker, put an entry into `TRACKERS`: a package, and a function that opens a run of it.
"""

import contextlib
import importlib.util
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rankwise.config import RunConfig
from rankwise.config_json import flat, from_json
from rankwise.errors import RankwiseError, nearest
from rankwise.runs.events import Emit, optional

if TYPE_CHECKING:
    from rankwise.run_folder import (
        RunFolder,
    )  # numpy and pyarrow, which reading a command line must not wait for

FLUSH_SECONDS = 5
"""Time between two writes of TensorBoard's file."""
PROJECT = "rankwise"
"""Of a run, unless the tracker's own environment variable names another one."""


class Opened(Protocol):
    """A run that a tracker has opened."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add values to the curves of these names."""

    def close(self) -> None:
        """End the run."""


@dataclass(frozen=True)
class Start:
    """What a tracker's run begins with.

    Attributes:
        folder: of the run.
        settings: the options that were asked for, by name.
        step: the last step of the checkpoint that the run continues from; what an interrupted run logged after it comes again.
        known: what the tracker noted when the run began (its id there); empty for a new run.
    """

    folder: "RunFolder"
    settings: dict[str, Any]
    step: int
    known: dict[str, str]

    @property
    def name(self) -> str:
        """The run's name for people."""
        return self.folder.path.name


class _TensorBoard:
    def __init__(self, start: Start) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and optional

        place = str(start.folder.path / "tensorboard")
        self._writer = SummaryWriter(place, purge_step=start.step + 1, flush_secs=FLUSH_SECONDS)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, start: Start) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=start.name,
            id=start.known.setdefault("id", secrets.token_hex(4)),
            resume="allow",
            config=start.settings,
            dir=str(start.folder.path),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, start: Start) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        self._mlflow = mlflow
        if not os.environ.get("MLFLOW_EXPERIMENT_NAME") and not os.environ.get("MLFLOW_EXPERIMENT_ID"):
            mlflow.set_experiment(PROJECT)
        run = mlflow.start_run(run_id=start.known.get("id"), run_name=start.name)
        if "id" not in start.known:
            mlflow.log_params({name: str(value)[:500] for name, value in start.settings.items()})
        start.known["id"] = run.info.run_id

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class _Trackio:
    def __init__(self, start: Start) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=start.known.setdefault("id", start.name),
            config=start.settings,
            resume="allow",
            embed=False,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


@dataclass(frozen=True)
class Tracker:
    """A program that shows curves.

    Attributes:
        label: its name for people.
        package: that it takes, as pip names it.
        open: opens a run.
    """

    label: str
    package: str
    open: Callable[[Start], Opened]


TRACKERS: dict[str, Tracker] = {
    "tensorboard": Tracker("TensorBoard", "tensorboard", _TensorBoard),
    "wandb": Tracker("Weights & Biases", "wandb", _Wandb),
    "mlflow": Tracker("MLflow", "mlflow", _MLflow),
    "trackio": Tracker("Trackio", "trackio", _Trackio),
}
"""By their name in `report_to=`."""


def check(names: Sequence[str]) -> None:
    """Refuse a tracker that isn't known or isn't installed.

    Raises:
        RankwiseError: saying how to install it.
    """
    for name in names:
        if name not in TRACKERS:
            raise RankwiseError(f"`report_to=` knows no {name!r}.{nearest(name, TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise RankwiseError(
                f"`report_to={name}` needs the package {TRACKERS[name].package}. Install it (pip install {TRACKERS[name].package}), "
                "or leave the option out."
            )


class Board:
    """A run's curves, wherever they are to be shown. After an error of a tracker the run goes on without it.

    Args:
        emit: told what can't be written.
        names: of the trackers.
        folder: of the run.
        step: the last step of the checkpoint that the run continues from.
    """

    def __init__(
        self, emit: Emit, names: Sequence[str] = (), folder: "RunFolder | None" = None, step: int = 0
    ) -> None:
        self._emit, self._opened = emit, dict[str, Opened]()
        if not names or folder is None:
            return
        record = folder.read_run()
        known: dict[str, dict[str, str]] = record.get("trackers") or {}
        settings = flat(from_json(RunConfig, record["requested"]))
        for name in names:
            with self._writing(name):
                start = Start(folder, settings, step, known.setdefault(name, {}) if step else {})
                self._opened[name] = TRACKERS[name].open(start)
                known[name] = start.known
        folder.update_run_json(trackers=known)

    def step(self, line: dict[str, Any]) -> None:
        """Add a line of steps.jsonl: training under `train/`, scores under `validation/`."""
        values = {f"train/{name}": line.get(name) for name in ("loss", "lr", "grad_norm")}
        if line.get("seconds"):
            values["train/rows_per_second"] = line["rows"] / line["seconds"]
        if "held_out_loss" in line:
            values["held_out/loss"] = line["held_out_loss"]
        values |= {f"validation/{name}": value for name, value in line.get("validation", {}).items()}
        self._log({name: value for name, value in values.items() if value is not None}, line["step"])

    def close(self, step: int, scores: dict[str, dict[str, float]]) -> None:
        """Add the final scores of each split, and end the run."""
        self._log(
            {f"final {split}/{name}": v for split, values in scores.items() for name, v in values.items()},
            step,
        )
        for name, opened in list(self._opened.items()):
            with self._writing(name):
                opened.close()

    def _log(self, values: dict[str, float], step: int) -> None:
        for name, opened in list(self._opened.items()):
            with self._writing(name):
                opened.log(values, step)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """After an error in the `with` block the tracker isn't used any more."""
        failed = True
        with optional(f"The curves for {TRACKERS[name].label}", self._emit):
            try:
                yield
            except SystemExit as error:  # a tracker never ends a run
                raise RuntimeError(f"it ended with {error}") from error
            failed = False
        if failed:
            self._opened.pop(name, None)
