"""`python -m rankwise.runs.ray_driver`: the process of a grid that uses Ray (see `ray_work`), and what a task of Ray does.

It is told over standard input, in lines of JSON, of the grid and then of runs to do. It prints events, a line of JSON each:
`refused` or `connected`, and `ended` for each task. When its standard input is closed, its tasks save their state and end.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rankwise.config_json import from_json
from rankwise.errors import RankwiseError, machine_fault
from rankwise.hardware import cores
from rankwise.runs import grid
from rankwise.runs.claims import POLL_SECONDS, Claims
from rankwise.runs.config import CompareConfig
from rankwise.runs.work import LOST, STOP_SECONDS, Heard, Work, worker_command

LOCAL = "local"
"""In place of an address: a cluster of this machine, which ends with the grid."""
REACH_SECONDS = 10.0
"""Time in which the machine that an address names has to answer."""
STORE_BYTES = 100 * 2**20
"""Memory for what tasks return, which is a sentence each."""


def main() -> None:
    """Do what standard input says."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group of processes; the grid hears it
    asked = json.loads(sys.stdin.readline())
    config = from_json(CompareConfig, asked["config"])
    try:
        _connect(config.ray)
        cpus, gpus = share(config, _nodes())
    except Exception as error:  # Ray's are of every kind
        said = (
            str(error)
            if isinstance(error, RankwiseError)
            else f"Ray can't be used at {config.ray}: {_line(error)}"
        )
        _tell("refused", message=said)
        return
    _tell("connected")
    _serve(config, cpus, gpus, asked["token"], asked["place"])


def _connect(address: str | None) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray  # an optional dependency

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        ray.init(LOCAL, num_cpus=cores(), include_dashboard=False, object_store_memory=STORE_BYTES, **quiet)
        return
    host, colon, port = str(address).removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():  # Ray itself would try for a quarter of an hour
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
        except OSError as error:
            raise RankwiseError(f"No Ray cluster answers at {address}: {error.strerror or error}.") from None
    ray.init(address, **quiet)


def _nodes() -> list[dict[str, float]]:
    """Return the resources of each node of the cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def share(config: CompareConfig, nodes: Sequence[dict[str, float]]) -> tuple[int, int]:
    """Return the CPUs and GPUs of each run.

    Args:
        config: of the grid. Where it says no number of threads, a run gets as many CPUs as any node has for it.
        nodes: the resources of each node, by Ray's names.

    Raises:
        RankwiseError: no node has so many.
    """
    device, threads = config.model.device, config.model.threads
    gpus = int(
        device.startswith("cuda") or (device == "auto" and any(node.get("GPU", 0) >= 1 for node in nodes))
    )
    fitting = [node for node in nodes if node.get("CPU", 0) >= (threads or 1) and node.get("GPU", 0) >= gpus]
    if not fitting:
        wanted = f"{threads or 'a'} CPU{'s' * ((threads or 1) > 1)}{' and a GPU' if gpus else ''}"
        most = int(max((node.get("CPU", 0) for node in nodes if node.get("GPU", 0) >= gpus), default=0))
        raise RankwiseError(
            f"No node of the Ray cluster has {wanted} for a run"
            + (
                f"; the most that one has is {most}. Give fewer `threads=`."
                if most
                else ". Give another `device=`."
            )
        )
    per_node = [int(node["CPU"] // (node["GPU"] if gpus else 1)) for node in fitting]
    return threads or max(1, min(per_node)), gpus


def _serve(config: CompareConfig, cpus: int, gpus: int, token: str, place: str) -> None:
    """Submit the runs that standard input names and tell of the ends of their tasks, until it is closed."""
    import ray

    asked: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(asked.put,), daemon=True).start()
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(do_run)
    tasks: dict[Any, str] = {}
    while True:
        with contextlib.suppress(queue.Empty):
            line = asked.get(timeout=POLL_SECONDS)
            if not line:
                break
            for name, failed_in in json.loads(line)["runs"]:
                tasks[task.remote(config, name, failed_in, cpus, token, place)] = name
        ended = ray.wait(list(tasks), num_returns=len(tasks), timeout=0)[0] if tasks else []
        for one in ended:
            _tell("ended", run=tasks.pop(one), **_outcome(one))
    for one in tasks:
        ray.cancel(one)
    if tasks:
        ray.wait(list(tasks), num_returns=len(tasks), timeout=STOP_SECONDS + 2 * POLL_SECONDS)
    ray.shutdown()


def _read(put: Callable[[str], None]) -> None:
    for line in sys.stdin:
        put(line)
    put("")


def _outcome(task: Any) -> dict[str, str | None]:
    """Return why the run of a task that has ended failed, or how the task was lost."""
    import ray
    from ray.exceptions import LocalRayletDiedError, RayError, RayTaskError

    try:
        return {"failed": ray.get(task), "lost": None}
    except LocalRayletDiedError:  # that of this process: there is no way to the cluster any more
        raise
    except RayTaskError as error:
        return {"failed": f"Its node can't do it: {_line(error.cause)}", "lost": None}
    except RayError as error:
        return {"failed": None, "lost": _line(error)}


def do_run(
    config: CompareConfig, name: str, failed_in: str | None, cpus: int, token: str, place: str
) -> str | None:
    """Do one run of a grid, unless another process has it. Ray calls this on one of its nodes.

    Args:
        config: of the grid.
        name: of the run.
        failed_in: the process that is known to have failed in the run.
        cpus: the task's share.
        token: of the claims of the grid's process, by which its folder is known.
        place: the folder that relative paths start from.

    Returns:
        Why the run failed; None if it didn't, or another process has it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which cancels a task, and may be ignored here
    with contextlib.suppress(OSError):
        os.chdir(place)
    if not Claims(config.out).sees(token):
        return f"{socket.gethostname()} sees another {config.out} or none. With `ray=`, `out=` has to be a folder that all nodes share."
    (run,) = (run for run in grid.cells(config) if run.name == name)
    heard: Heard = queue.Queue()
    try:
        with Claims(config.out, lambda _: heard.put((run, LOST))) as claims:
            work = Work(
                replace(config, wait=False),
                [run],
                lambda name, event: None,
                worker_command,
                claims,
                heard,
                threads=cpus,
                failures={name: failed_in},
            )
            return work.do().get(name)
    except (OSError, RankwiseError) as error:
        return machine_fault(error) or str(error)


def _tell(event: str, **entries: Any) -> None:
    print(json.dumps({"event": event, **entries}), flush=True)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    from rankwise.runs import ray_driver  # Ray's nodes find `do_run` by the name of its module

    ray_driver.main()
