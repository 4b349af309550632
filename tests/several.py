"""`torchrun … several.py SETTINGS`: rankwise commands in several processes, which may be disturbed; see `run`.

SETTINGS is a JSON object: `commands`, a list of argument lists; `silence`, the seconds after which a process that says nothing is lost;
and for a disturbance `what` (kill, term, error, weights, inf), the number of the `process`, the `step`, and `checkpoints`, which says
whether each step writes one. A job that torchelastic starts again isn't disturbed again.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest import mock

SCRIPT = Path(__file__)
ADDRESSES = "10.177.0.1", "10.177.0.2"
"""Of the two hosts."""
LOST = "Another process of this training ended or can't be reached, so this one ended, too."
SILENCE = 15.0
"""Seconds after which a process that says nothing is lost, where a test waits for that."""
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
        [sys.executable, *(torchrun if processes > 1 else []), SCRIPT, settings],
        capture_output=True,
        text=True,
        timeout=500,
        env=_environment(environment),
    )


class Hosts:
    """Two network namespaces joined by a cable: what runs in one reaches the other by its address only. Use it in a `with` block.

    Args:
        folder: gets a file.

    Raises:
        OSError, CalledProcessError: this machine or its user can't have any.
    """

    def __init__(self, folder):
        self.names = [f"rankwise-{os.getpid()}-{host}" for host in (0, 1)]
        self.ends = [f"rw{os.getpid()}-{host}" for host in (0, 1)]
        self.known = folder / "hosts"  # names are looked up here, where there is no server to ask
        lines = [f"{a} host{n}\n::ffff:{a} host{n}\n" for n, a in enumerate(ADDRESSES)]
        self.known.write_text("127.0.0.1 localhost\n" + "".join(lines))

    def __enter__(self):
        try:
            for name in self.names:
                _ip("netns", "add", name)
            one, other = zip(self.ends, self.names, strict=True)
            _ip(
                "link",
                "add",
                one[0],
                "netns",
                one[1],
                "type",
                "veth",
                "peer",
                "name",
                other[0],
                "netns",
                other[1],
            )
            for name, end, address in zip(self.names, self.ends, ADDRESSES, strict=True):
                _ip("-n", name, "address", "add", f"{address}/24", "dev", end)
                _ip("-n", name, "link", "set", "lo", "up")
                self.cable(name, end, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def cable(self, name, end, state):
        """Plug a host's end of the cable in (`up`), or pull it out (`down`)."""
        _ip("-n", name, "link", "set", end, state)

    def tear(self):
        """Pull the cable out."""
        self.cable(self.names[1], self.ends[1], "down")

    def mend(self):
        """Plug it in again."""
        self.cable(self.names[1], self.ends[1], "up")

    def run(self, *commands, environment=None, meanwhile=lambda: None, **disturbance):
        """Runs commands with torchrun, a process on each host, and `meanwhile` beside them. Returns what became of each torchrun."""
        settings = json.dumps({"commands": [[*map(str, c)] for c in commands], **disturbance})
        torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "1"]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:29500"]
        started = []
        for name, end, address in zip(self.names, self.ends, ADDRESSES, strict=True):
            mount = f'mount --bind "{self.known}" /etc/hosts && exec "$@"'
            inside = ["nsenter", f"--net=/run/netns/{name}", "unshare", "--mount", "sh", "-c", mount, "sh"]
            own = ["--local-addr", address, "--rdzv-conf", f"is_host={address == ADDRESSES[0]}"]
            started.append(
                subprocess.Popen(
                    [*inside, sys.executable, *torchrun, *own, SCRIPT, settings],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=_environment({"GLOO_SOCKET_IFNAME": end, **(environment or {})}),
                )
            )
        with ThreadPoolExecutor(2) as pool:  # the pipes of both are read
            said = pool.map(lambda p: p.communicate(timeout=500), started)
            meanwhile()
            return [
                subprocess.CompletedProcess(process.args, process.returncode, *both)
                for both, process in zip(said, started, strict=True)
            ]


def _ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _environment(more):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **(more or {})}


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
    if seconds := settings.pop("silence", None):
        processes.SILENCE = timedelta(seconds=seconds)
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
