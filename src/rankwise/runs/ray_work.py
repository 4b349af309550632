"""A grid's runs on a Ray cluster (`ray=`): each is a task with its own share of CPUs and GPUs, which is done again when its node is lost.

    this process ◄─► the driver (see `ray_driver`) ◄─► Ray ◄─► tasks, each of which claims and does one run (see `work`)
          └──────────── the shared folder: claims, run folders, results ────────────┘

Ray decides where a run is done; the claims decide who may write its folder. So other processes may share the grid, and a node that Ray has
given up does no harm if it is still at work. Ray has a process of its own, because it may end it, block it, and print to its terminal.
"""

import contextlib
import importlib.util
import json
import queue
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rankwise.config_json import to_json
from rankwise.errors import RankwiseError
from rankwise.runs.claims import POLL_SECONDS
from rankwise.runs.config import CompareConfig
from rankwise.runs.work import STOP_SECONDS, Child, Run, Work

CONNECT_SECONDS = 60.0
"""Time in which a cluster has to answer."""
LOSSES = 3
"""A run fails when it was lost more often than this without a new checkpoint: it may be what its nodes don't survive."""


def check(address: str | None) -> None:
    """Refuse a cluster where Ray isn't installed.

    Raises:
        RankwiseError: saying how to install it.
    """
    if address is not None and importlib.util.find_spec("ray") is None:
        raise RankwiseError(
            "`ray=` needs the package ray. Install it (pip install 'rankwise[ray]'), or leave the option out."
        )


class RayWork(Work):
    """The runs of a grid that aren't finished, done by tasks of a Ray cluster."""

    def do(self) -> dict[str, str]:
        """Have tasks do what is left, until every run has ended; return why runs failed.

        Raises:
            RankwiseError: there is no such cluster, none of its nodes has what a run needs, or it was lost.
        """
        self._submitted: set[str] = set()
        self._losses: Counter[tuple[str, Path | None]] = Counter()
        if not self._waiting:
            return self._end()
        with _Driver(self._config) as driver:
            driver.connect(self._claims.token)
            while self._waiting:
                driver.submit([(run.name, self._failures[run.name]) for run in self._free()])
                left = not self._submitted and len(self._elsewhere) == len(self._waiting)
                if left and not self._config.wait:
                    break
                for event in driver.events(POLL_SECONDS):
                    self._take(event)
        return self._end()

    def _free(self) -> list[Run]:
        """Return the runs that no process does and no task is to do, and look at the others."""
        self._elsewhere, holders = {}, self._claims.holders()
        free = []
        for run in list(self._waiting):
            held, submitted = run.name in holders, run.name in self._submitted
            if run.folder.finished and not (held and submitted):  # its task has yet to clear up
                self._keep(run)
            elif held:
                self._leave_to_others(run, holders[run.name])
            elif not submitted:
                free.append(run)
        self._submitted |= {run.name for run in free}
        return free

    def _take(self, event: dict[str, Any]) -> None:
        """Take a task's end. Its run is finished, failed, another process's, or was lost."""
        self._submitted.discard(event["run"])
        run = next((run for run in self._waiting if run.name == event["run"]), None)
        if run is None or run.folder.finished:
            return
        if event["failed"] is not None:
            self._fail(run, event["failed"])
        elif event["lost"] is not None:
            place = run.name, run.folder.checkpoint
            self._losses[place] += 1
            if (n := self._losses[place]) > LOSSES:
                self._fail(
                    run, f"Its node or process was lost {n} times without a new checkpoint. {event['lost']}"
                )
            else:
                told = {
                    "event": "note",
                    "text": "Its node or process was lost; the run continues on another.",
                }
                self._listen(run.name, told)


class _Driver(Child):
    """The process that uses Ray. It cancels its tasks and ends when its standard input is closed."""

    def __init__(self, config: CompareConfig) -> None:
        self._config, self._connected, self._ended, self._keeps_log = config, False, False, False
        self._told: queue.Queue[tuple[None, dict[str, Any] | None]] = queue.Queue()
        self._log = config.out / "ray.log"
        with self._log.open("ab") as log:
            super().__init__(None, [sys.executable, "-m", "rankwise.runs.ray_driver"], log, self._told)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hang_up()
        self.stop(time.monotonic() + (2 * STOP_SECONDS if self._connected else 0.0))
        if not self._keeps_log:
            with contextlib.suppress(OSError):
                self._log.unlink(missing_ok=True)

    def connect(self, token: str) -> None:
        """Have it connect to the cluster.

        Args:
            token: of this process's claims, by which tasks know the folder.

        Raises:
            RankwiseError: there is no such cluster, or none of its nodes has what a run needs.
        """
        config = replace(self._config, out=self._config.out.absolute())
        self._say(config=to_json(config), token=token, place=str(Path.cwd()))
        events = self.events(CONNECT_SECONDS)
        if not events:
            self._keeps_log = True
            raise RankwiseError(
                f"No Ray cluster answers at {config.ray} within {CONNECT_SECONDS:.0f} s; see {self._log}."
            )
        if events[0]["event"] == "refused":
            raise RankwiseError(events[0]["message"])
        self._connected = True

    def submit(self, runs: Sequence[tuple[str, str | None]]) -> None:
        """Have a task do each of these runs, by name and the process that is known to have failed in it."""
        if runs:
            self._say(runs=runs)

    def events(self, seconds: float) -> list[dict[str, Any]]:
        """Wait for events, and return those that have come.

        Raises:
            RankwiseError: the process has ended.
        """
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self._told.get(timeout=0.0 if self._ended else seconds))
            while True:
                found.append(self._told.get_nowait())
        events = [event for _, event in found if event is not None]
        self._ended |= len(events) < len(found)
        if not events and self._ended:
            self._keeps_log = True
            raise RankwiseError(
                f"The Ray cluster {self._config.ray} was lost; see {self._log}. The same command continues."
            )
        return events

    def _say(self, **entries: Any) -> None:
        self.tell(json.dumps(entries).encode() + b"\n")
