"""Runs a command on many damaged inputs, and says for which of them it crashed, hung or took too much memory.

Commands run one after another in a process of its own, so that a signal or a hang is seen from outside and the next input gets a new
process. `make test` tries a few inputs a reader, `make faults` 2,000; a failure names its seed.
"""

import json
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 20.0
"""A command that takes longer hangs."""
MEGABYTES = 2000
"""What a command may hold at its highest."""
INPUTS = int(os.environ.get("RANKWISE_FAULTS", "30"))
"""Damaged inputs a reader."""
SEED = int(os.environ.get("RANKWISE_FAULTS_SEED", "0"))

Make = Callable[[random.Random, Path], Sequence[object]]
"""Writes one damaged input into an empty folder and returns the command line that reads it."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code (negative: a signal; None: it hung), its last words, its seconds and its highest memory."""

    command: tuple[str, ...]
    code: int | None
    said: str
    seconds: float
    megabytes: float

    @property
    def fault(self) -> str | None:
        """What was wrong with it, None where it ended well or with a sentence."""
        if self.code is None:
            return f"hung for {SECONDS:.0f} s"
        if self.code not in (0, 2):
            return f"exit {self.code}: {self.said[-300:]}"
        if self.megabytes > MEGABYTES:
            return f"held {self.megabytes:.0f} MB"
        if self.code == 2 and (not self.said.strip() or "Traceback" in self.said):
            return f"exit 2 without a sentence: {self.said[-300:]}"
        return None


class Commands:
    """A process that runs commands one after another. It starts anew after a crash or a hang."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, command: Sequence[object]) -> Outcome:
        """Run one command to its end, or for `SECONDS`."""
        if self._process is None:
            self._process = self._started()
        process, words, began = self._process, tuple(map(str, command)), time.monotonic()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(words) + "\n")
        process.stdin.flush()
        answered = select.select([process.stdout], [], [], SECONDS)[0]
        line = process.stdout.readline() if answered else ""
        seconds = time.monotonic() - began
        if line:
            end = json.loads(line)
            return Outcome(words, end["code"], end["said"], seconds, end["megabytes"])
        if not answered:
            process.kill()
        code = process.wait() if answered else None
        self.close()
        return Outcome(words, code, "", seconds, 0.0)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    @staticmethod
    def _started() -> subprocess.Popen[str]:
        worker = Path(__file__).with_name("worker.py")
        process = subprocess.Popen(
            [sys.executable, str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"  # importing doesn't count as time of the first command
        return process


def faults(make: Make, folder: Path, inputs: int | None = None) -> list[str]:
    """Run a reader on damaged inputs.

    Args:
        make: writes one input, from a generator of its own.
        folder: empty; each input gets a folder in it, which stays where there was a fault.
        inputs: how many. Default: `INPUTS`.

    Returns:
        A line for each fault: the seed, the command, what was wrong.
    """
    commands, lines = Commands(), []
    try:
        for i in range(INPUTS if inputs is None else inputs):
            seed = SEED + i
            place = folder / str(seed)
            place.mkdir()
            outcome = commands.run(make(random.Random(seed), place))
            if outcome.fault is not None:
                lines.append(f"seed {seed}: rankwise {' '.join(outcome.command)}: {outcome.fault}")
            else:
                subprocess.run(["rm", "-rf", str(place)], check=True)
    finally:
        commands.close()
    return lines
