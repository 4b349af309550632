"""kill -9 at random instants, of grids that share a folder and of their runs: nothing is lost, nothing doubled, and the table is the same.

`make test` does `KILLS` kills, `make faults` 200. The seed is printed; `RANKWISE_FAULTS_SEED` sets it.
"""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults import nursery
from faults.harness import SEED
from rankwise.report import collect
from rankwise.run_folder import RunFolder, run_folders
from tiny import model_folder, sst2_folder

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("RANKWISE_KILLS", "12"))
METHODS, SEEDS = ("full", "lora", "head", "bitfit"), 3
RUNS = len(METHODS) * SEEDS
ROWS, BATCH = 40, 4
PAUSE = 0.8
"""Longest time between two kills, in seconds: about that of a run."""
MEASURED = {
    "seconds",
    "memory",
    "train_seconds",
    "samples_per_second",
    "tokens_per_second",
    "speed",
    "peak_memory_mb",
    "peak_rss_mb",
}
"""What a process measures of itself: the first step after a kill has no gradients of an earlier one in memory."""


class Grid:
    """A grid process that was started, to be killed or waited for."""

    def __init__(self, address: str, command: list[str], log: Path) -> None:
        with log.open("ab") as said, Path(os.devnull).open("rb") as nothing:
            self.said, streams = log, (nothing.fileno(), said.fileno(), said.fileno())
            self._connection, self.pid = nursery.ask(address, command, streams)
        self.code: int | None = None

    def ended(self) -> bool:
        """Whether it has ended, and then with which `code`."""
        if self.code is None:
            self._connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                self.code = int(self._connection.recv(20) or b"1")
                self._connection.close()
        return self.code is not None

    def wait(self) -> int:
        wait_until(self.ended, f"{self.said} ended")
        assert self.code is not None
        return self.code


def wait_until(holds, what: str) -> None:
    for _ in range(30_000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError(f"never happened: {what}")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator:
    """Starts `rankwise compare` over twelve tiny runs into a folder."""
    here = tmp_path_factory.mktemp("kills")
    sst2_folder(here / "glue", ROWS, 20)
    model = model_folder(here / "model")
    options = f"--tasks sst2 --seeds {SEEDS} --epochs 1 --batch-size {BATCH} --lr 3e-3 --threads 1"
    command = ["compare", "--methods", *METHODS, *options.split(), "--data", here / "glue", "--model", model]
    with nursery.serving(here) as address:
        yield lambda out: Grid(address, [*map(str, command), "--out", str(out)], out.with_suffix(".log"))


def made(out: Path) -> dict[str, tuple]:
    """All that the runs of a grid made, and its table, but for what a process measures of itself."""
    found: dict[str, tuple] = {}
    for run in run_folders(out):
        result = {name: value for name, value in run.read_result().items() if name not in MEASURED}
        steps = [
            {name: value for name, value in step.items() if name not in MEASURED} for step in run.read_steps()
        ]
        files = sorted(path.name for path in run.path.iterdir() if path.name != "log.txt")
        found[run.path.name] = (result, steps, run.read_predictions().to_pylist(), files)
    rows = [(row.method, row.score, row.difference, row.p_rows, row.trainable) for row in collect(out).rows]
    return found | {"table": tuple(rows)}


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory) -> dict[str, tuple]:
    out = tmp_path_factory.mktemp("undisturbed") / "runs"
    assert start(out).wait() == 0, out.with_suffix(".log").read_text()
    assert len(run_folders(out)) == RUNS
    return made(out)


def results(out: Path) -> dict[str, bytes]:
    return {file.parent.name: file.read_bytes() for file in out.glob("*/result.json")}


def pids(out: Path) -> list[int]:
    """The processes of runs; some may have ended."""
    found = []
    for file in out.with_suffix(".ledger").glob("*.pid"):
        if not RunFolder(out / file.stem).finished:
            found += [int(line) for line in file.read_text().split()[:1]]
    return found


def kill(pid: int) -> bool:
    """Kill a process of the nursery. Return whether there was one."""
    try:
        if b"nursery" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return False
        os.kill(pid, signal.SIGKILL)
    except (OSError, ProcessLookupError):
        return False
    return True


def check(out: Path, seen: dict[str, bytes], undisturbed: dict[str, tuple]) -> None:
    """Nothing lost, nothing doubled, and the same table."""
    notes = out.with_suffix(".ledger").joinpath("notes").read_text().splitlines()
    times = Counter(notes)
    assert [note for note in notes if not note.startswith("finished:")] == []
    assert {note for note, n in times.items() if n > 1} == set()
    now = results(out)
    assert len(now) == RUNS
    assert {name for name, content in seen.items() if now[name] != content} == set()
    assert made(out) == undisturbed
    assert not (out / ".claims").exists()


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_share_a_folder_make_the_table_of_one(start, undisturbed, tmp_path, processes):
    out = tmp_path / "runs"
    grids = [start(out) for _ in range(processes)]
    assert [grid.wait() for grid in grids] == [0] * processes, out.with_suffix(".log").read_text()
    check(out, {}, undisturbed)


def test_kills_at_random_instants_change_nothing(start, undisturbed, tmp_path):
    rng, left, i = random.Random(SEED), KILLS, 0
    print(f"seed {SEED}, {KILLS} kills")
    while left:
        out, i = tmp_path / f"round{i}" / "runs", i + 1
        out.parent.mkdir()
        left -= disturb(start, out, rng, min(left, rng.randint(5, 10)), undisturbed)


def disturb(start, out: Path, rng: random.Random, kills: int, undisturbed: dict[str, tuple]) -> int:
    """Have two grids share a folder, and kill them and their runs at random instants. Return the number of kills."""
    seen: dict[str, bytes] = {}
    done, ends, until = 0, Counter(), time.monotonic() + 600
    grids = [start(out), start(out)]
    while len(seen) < RUNS:
        assert time.monotonic() < until, f"{out} stands still: {out.with_suffix('.log').read_text()[-2000:]}"
        time.sleep(rng.uniform(0.0, PAUSE))
        seen |= {name: content for name, content in results(out).items() if name not in seen}
        if done < kills:
            grid = [one.pid for one in grids if not one.ended()]
            victims = rng.choice([grid, grid, pids(out)])
            done += bool(victims) and kill(rng.choice(victims))
        for k, one in enumerate(grids):
            if one.ended():
                ends[one.code] += 1
                grids[k] = start(out)
    while done < kills and any(not one.ended() for one in grids):  # while the table is written
        time.sleep(rng.uniform(0.0, PAUSE / 4))
        done += kill(rng.choice([one.pid for one in grids if one.code is None] or [0]))
    codes = [one.wait() for one in grids]
    assert ends.keys() | set(codes) <= {0, 2, -signal.SIGKILL}, out.with_suffix(".log").read_text()[-3000:]
    assert start(out).wait() == 0  # what it says is the whole table
    check(out, seen, undisturbed)
    return done
