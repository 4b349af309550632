"""Starts processes that have imported everything already: importing takes seconds, and runs of a test a fraction of one.

    python tests/faults/nursery.py serve SOCKET           imports, then forks a process for each request: `compare …`, or `worker FOLDER`
    python tests/faults/nursery.py worker SOCKET FOLDER   what a grid starts as a run: asks for a worker, and ends as that ends

A worker writes a checkpoint after each step. It keeps a ledger beside the grid's folder: its process, each result that was written, and
whether it met another worker, or a result, in its folder.
"""

import array
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

IMPORTED = (
    "transformers.models.bert.modeling_bert",
    "rankwise.adapters.predict",
    "rankwise.cli.comparing",
    "rankwise.cli.training",
    "rankwise.cli.progress",
    "rankwise.report",
    "rankwise.runs.run",
    "rankwise.runs.grid",
    "scipy.stats",
)
"""What a grid or a run needs, so that none has to import it again."""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve for a block of code, with caches in a folder; yield the address to ask."""
    address = str(folder / "socket")
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    server = subprocess.Popen(
        [sys.executable, __file__, "serve", address],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    try:
        assert server.stdout.readline() == "ready\n"
        yield address
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def ask(address: str, request: list[str], streams: tuple[int, int, int]) -> tuple[socket.socket, int]:
    """Have a process started with these streams. Return where its end is told, and its number."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(address)
    told = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))]
    connection.sendmsg([json.dumps(request).encode() + b"\n"], told)
    return connection, int(connection.recv(20))


def code_of(connection: socket.socket) -> int:
    """Return the exit code of a process, negative where a signal ended it, once it has ended."""
    with connection:
        return int(connection.recv(20) or b"1")


def stand_in(address: str, folder: str) -> None:
    """Be a run's process for a grid."""
    connection, pid = ask(address, ["worker", folder], (0, 1, 2))
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    code = code_of(connection)
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


def serve(address: str) -> None:
    """Fork a process for each request, until standard input is closed."""
    import threading
    from importlib import import_module

    sys.path.insert(0, str(Path(__file__).parents[1]))
    for module in IMPORTED:
        import_module(module)
    assert threading.active_count() == 1, "a process with threads can't be forked"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(address)
    server.listen(64)
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        if not os.fork():
            server.close()
            os._exit(_attend(connection, address))
        connection.close()


def _attend(connection: socket.socket, address: str) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, told, _, _ = connection.recvmsg(100_000, socket.CMSG_SPACE(3 * 4))
    streams = array.array("i", told[0][2])
    pid = os.fork()
    if not pid:
        connection.close()
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
        os._exit(_be(json.loads(request), address))
    for stream in streams:
        os.close(stream)
    os.close(0)
    connection.sendall(b"%d" % pid)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    connection.sendall(b"%d" % code)
    return 0


def _be(request: list[str], address: str) -> int:
    """Be the process that was asked for; return its exit code."""
    try:
        if request[0] == "worker":
            _worker(request[1])
        else:
            _compare(request, address)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _compare(request: list[str], address: str) -> None:
    from functools import partial

    from rankwise import cli
    from rankwise.runs import claims, grid, work

    def command(folder: object) -> list[str]:
        return [sys.executable, "-I", "-S", __file__, "worker", address, str(folder)]

    claims.POLL_SECONDS = work.POLL_SECONDS = 0.1
    claims.BEAT_SECONDS = work.BEAT_SECONDS = 0.2
    grid.run_grid = partial(grid.run_grid, command=command)
    sys.argv = ["rankwise", *request]
    cli.main()


def _worker(folder: str) -> None:
    import fcntl

    from disturbed import checkpoint_every_step
    from rankwise.run_folder import RunFolder
    from rankwise.runs import worker

    name, ledger = Path(folder).name, Path(folder).parent.with_suffix(".ledger")
    ledger.mkdir(exist_ok=True)

    def note(what: str) -> None:
        with (ledger / "notes").open("a") as file:
            file.write(f"{what} {name}\n")

    with (ledger / f"{name}.pid").open("a") as alone:
        try:
            fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            note("two at a time:")
        if RunFolder(folder).finished:
            note("begun again:")
        alone.truncate(0)
        alone.write(f"{os.getpid()}\n")
        alone.flush()
        write = RunFolder.write_result

        def write_result(self: RunFolder, result: dict) -> None:
            write(self, result)
            note("finished:")

        RunFolder.write_result = write_result
        checkpoint_every_step()
        sys.argv = ["worker", folder]
        worker.main()


if __name__ == "__main__":
    {"serve": serve, "worker": stand_in}[sys.argv[1]](*sys.argv[2:])
