"""`torchrun … several.py SETTINGS`: rankwise commands in several processes, which may be disturbed; see `run`.

SETTINGS is a JSON object: `commands`, a list of argument lists; and for a disturbance `what` (kill, term, error, weights, inf), the number
of the `process`, the `step`, and `checkpoints`, which says whether each step writes one. A job that torchelastic starts again isn't
disturbed again.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

CONFIG = {
    "prune_at": {0.35: 0.0005, 0.5: 0.01, 0.65: 0.05, 0.8: 0.5},
    "memory": 8,
    "decay": 0.9,
    "noise_cap": 0.02,
    "smallest_prune": 0.01,
    "fewest_rows": 100,
    "fewest_steps": 20,
}
"""Constants that change ranks several times in a short training."""


def run(processes, *commands, restarts=0, environment=None, **disturbance):
    """Runs commands, one after the other, in processes that torchrun starts; without torchrun where there is one."""
    settings = json.dumps({"commands": [[*map(str, c)] for c in commands], **disturbance})
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    torchrun += ["--max-restarts", str(restarts)]
    return subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else []), __file__, settings],
        capture_output=True,
        text=True,
        timeout=500,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        },
    )


def said(done):
    """The lines of stderr that aren't torchrun's own report."""
    lines = done.stderr.split("Traceback (most recent call last)")[0].splitlines()
    return [line for line in lines if line and not re.match(r"[WEI]\d{4} ", line)]


def _disturb(what, process, step, checkpoints=False):
    import torch

    from rankwise.engine.training import Training
    from rankwise.errors import RankwiseError
    from rankwise.runs import run

    run.CHECKPOINT_SECONDS, run.CHECKPOINT_SHARE = (0.0, 1e9) if checkpoints else (1e9, 1.0)
    undisturbed = Training.step

    def disturbed(training, **given):
        here = (
            os.environ.get("RANK", "0") == str(process)
            and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        )
        if here and training.step_number == step:
            if what in ("kill", "term"):
                os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.SIGTERM)
            if what == "error":
                raise RankwiseError("This row is odd. Remove it.")
            if what == "weights":
                with torch.no_grad():
                    training.update.parameters[0].mul_(1.001)
            if what == "inf":
                training.gradients = partial(infinite, training)
        return undisturbed(training, **given)

    def infinite(training, *given, **named):
        del training.gradients  # this once
        loss, gradients = training.gradients(*given, **named)
        return loss, tuple(None if g is None else g + torch.inf for g in gradients)

    Training.step = disturbed


def main():
    settings = json.loads(sys.argv[1])
    from rankwise import cli
    from rankwise.engine import processes
    from rankwise.rank import defaults
    from rankwise.rank.config import RankConfig

    commands = settings.pop("commands")
    if settings:
        _disturb(**settings)
    config = RankConfig(**CONFIG)
    if len(commands) == 1:
        with defaults.replaced(config=config):
            cli.main(commands[0])
    with processes.joined() as group, defaults.replaced(config=config):
        for command in commands:
            own = group if group is processes.ONE else processes.Group(group.number, group.count)
            with mock.patch.object(processes, "joined", return_value=contextlib.nullcontext(own)):
                try:
                    cli.main(command)
                except SystemExit as stopped:
                    if stopped.code:
                        raise


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
