"""Several processes share a grid's folder: each run is done once, and what a lost process held is taken over.

Grids are processes of their own here; their runs are small scripts. What real runs make of it is in tests/faults/test_kills.py.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from rankwise.config import TrainOptions
from rankwise.config_json import to_json
from rankwise.errors import RankwiseError
from rankwise.run_folder import RESULT, RunFolder
from rankwise.runs import claims as module
from rankwise.runs.claims import Claims
from rankwise.runs.config import CompareConfig
from rankwise.runs.grid import run_grid

RUN = "sst2.lora.s0"


@pytest.fixture
def elsewhere(monkeypatch):
    """Claims as a process of another machine makes them: only its signs of life tell that it lives."""

    def make(out: Path, **given) -> Claims:
        with monkeypatch.context() as patch:
            patch.setattr(module, "_machine", lambda: "another machine")
            return Claims(out, **given)

    return make


def until(holds, what: str):
    for _ in range(12_000):
        if found := holds():
            return found
        time.sleep(0.01)
    raise AssertionError(f"never happened: {what}")


def test_one_of_two_gets_a_claim_and_the_other_hears_who(tmp_path):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.claim(RUN)
        assert not second.claim(RUN)
        holder = second.holders()[RUN]
        assert holder
        assert holder.pid == os.getpid()
        assert str(holder).endswith("s ago")
        assert RUN not in first.holders()
        first.release(RUN)
        assert second.claim(RUN)
    assert not list(tmp_path.iterdir())


def test_who_holds_many_claims_is_one_look_at_the_folder(tmp_path, monkeypatch):
    names, looks = [f"run{i}" for i in range(50)], []
    listing = module._listing
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert all(first.claim(name) for name in names)
        monkeypatch.setattr(module, "_listing", lambda folder: looks.append(folder) or listing(folder))
        assert second.holders().keys() == {*names}
        assert len(looks) == 1


def test_of_many_at_the_same_time_one_gets_each_claim(tmp_path):
    names, got = [f"run{i}" for i in range(30)], Counter()
    with Claims(tmp_path) as lost:
        for name in names[::2]:
            assert lost.claim(name)
    for name in names[::2]:  # every other one was left behind by a process that has ended
        (tmp_path / ".claims").mkdir(exist_ok=True)
        gone = {**lost._identity, "pid": 2**22 - 1, "process": "gone"}
        (tmp_path / ".claims" / f"{name}@1").write_bytes(module._line(gone))
    ready = threading.Barrier(8)

    def take():
        with Claims(tmp_path) as mine:
            ready.wait()
            for name in names:
                for _ in range(20):  # two at the same time both step back
                    if mine.claim(name):
                        got[name] += 1
                    time.sleep(0.001 * (1 + int(mine.token, 16) % 7))
            ready.wait()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == dict.fromkeys(names, 1)


def test_a_silent_process_of_another_machine_is_lost_and_hears_of_it_when_it_wakes(
    tmp_path, elsewhere, monkeypatch
):
    monkeypatch.setattr(module, "STALE_SECONDS", 0.3)
    lost: list[str] = []
    with elsewhere(tmp_path, on_lost=lost.append) as sleeper, Claims(tmp_path) as other:
        assert sleeper.claim(RUN)  # its next beat is seconds away
        assert not other.claim(RUN)
        assert until(lambda: other.claim(RUN), "the claim was taken over")
        sleeper._look_after()
        assert lost == [RUN]
        assert RUN not in other.holders()
        assert RUN in sleeper.holders()


def test_a_claim_of_the_same_number_is_told_apart_by_who_made_it(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr(module, "STALE_SECONDS", 0.3)
    lost: list[str] = []
    with elsewhere(tmp_path, on_lost=lost.append) as sleeper:
        assert sleeper.claim(RUN)
        with Claims(tmp_path) as other:
            assert until(lambda: other.claim(RUN), "the claim was taken over")
        with Claims(tmp_path) as again:  # no claim was left, so numbers begin anew
            assert again.claim(RUN)
            there = again._held[RUN].file.read_bytes()
            assert not sleeper.record_worker(RUN, os.getpid())
            sleeper._look_after()
            assert lost == [RUN]
            sleeper.release(RUN)
            assert again._held[RUN].file.read_bytes() == there


def test_a_process_that_beats_is_alive_whatever_the_clocks_say(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr(module, "STALE_SECONDS", 0.5)
    with elsewhere(tmp_path) as theirs, Claims(tmp_path) as other:
        assert theirs.claim(RUN)
        monkeypatch.setattr(time, "time", lambda: 0.0)
        for i in range(20):
            theirs._beat()
            os.utime(theirs._life, (i % 2 * 2e9, i % 2 * 2e9))  # 1970 and 2033
            assert not other.claim(RUN)
            assert RUN in other.holders()
            time.sleep(0.05)


def test_a_claim_cut_short_is_taken_over_once_nobody_finishes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALE_SECONDS", 0.2)
    (tmp_path / ".claims").mkdir()
    (tmp_path / ".claims" / f"{RUN}@1").touch()
    with Claims(tmp_path) as other:
        assert not other.claim(RUN)
        assert until(lambda: other.claim(RUN), "the claim was taken over")


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.claim(RUN)
        assert not second.claim(RUN)
        first.release(RUN)
        assert second.claim(RUN)


HOLDS = """
import subprocess, sys, time
from pathlib import Path
from rankwise.runs.claims import Claims
with Claims(Path(sys.argv[1])) as claims:
    assert claims.claim("sst2.lora.s0")
    worker = subprocess.Popen([sys.executable, "-S", "-E", "-c", "import time; time.sleep(600)"])
    claims.record_worker("sst2.lora.s0", worker.pid)
    print(worker.pid, flush=True)
    time.sleep(600)
"""


def test_a_killed_process_is_lost_at_once_but_not_before_its_worker_has_ended(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout
    with process.stdout:
        worker = int(process.stdout.readline())
    with Claims(tmp_path) as other:
        assert not other.claim(RUN)
        process.kill()
        process.wait()
        assert not other.claim(RUN)
        os.kill(worker, signal.SIGKILL)
        assert until(lambda: other.claim(RUN), "the claim was taken over")


def test_a_place_that_takes_no_files_is_named(tmp_path):
    (tmp_path / ".claims").touch()
    with pytest.raises(RankwiseError, match=r"\.claims"):
        Claims(tmp_path).__enter__()


# Grids

WORKER = f"""
import json, os, pathlib, sys, time
from rankwise.runs.parent import die_with_parent
die_with_parent()
folder = pathlib.Path(sys.argv[1])
request = json.loads((folder / "run.json").read_text())["requested"]
with (folder.parent / "started").open("a") as file:
    file.write(f"{{folder.name}} {{os.getppid()}}\\n")
time.sleep(SECONDS)
result = dict.fromkeys({RESULT!r}, 0) | {{"model": "", "metric": "", "scores": {{}}}}
result |= {{key: request[key] for key in ("task", "method", "seed")}}
FINISH
(folder / "result.json").write_text(json.dumps(result))
print(json.dumps({{"event": "result", **result}}), flush=True)
"""
GRID = """
import json, sys
from pathlib import Path
from rankwise.config import TrainOptions
from rankwise.config_json import to_json
from rankwise.runs.config import CompareConfig
from rankwise.runs.grid import run_grid
out, wait, code = sys.argv[1:]
config = CompareConfig(tasks=("sst2",), methods=("full", "lora"), seeds=3, out=Path(out), wait=bool(int(wait)))
heard = []
command = lambda folder: [sys.executable, "-c", code, str(folder)]
failed = run_grid(config, lambda name, event: heard.append((name, event["event"])), command=command)
print(json.dumps([heard, failed]))
"""
RUNS = [f"sst2.{method}.s{seed}" for seed in range(3) for method in ("full", "lora")]


@pytest.fixture
def grid(tmp_path):
    """Starts a grid of six runs in a process of its own."""
    processes = []

    def start(*, wait: bool = True, seconds: float = 0.2, finish: str = "") -> subprocess.Popen:
        code = WORKER.replace("SECONDS", str(seconds)).replace("FINISH", finish)
        process = subprocess.Popen(
            [sys.executable, "-c", GRID, str(tmp_path), str(int(wait)), code],
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def started(out: Path) -> list[list[str]]:
    file = out / "started"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def ended(process: subprocess.Popen) -> tuple[list[list[str]], dict[str, str]]:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return json.loads(said)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3])
def test_several_processes_do_each_run_once_and_all_end_with_every_run(tmp_path, grid, n):
    ends = [ended(process) for process in [grid(seconds=1.0) for _ in range(n)]]
    assert sorted(name for name, _ in started(tmp_path)) == sorted(RUNS)
    assert len({parent for _, parent in started(tmp_path)}) == n
    for heard, failed in ends:
        assert failed == {}
        assert sorted(name for name, event in heard if event in ("result", "kept")) == sorted(RUNS)
    assert not (tmp_path / ".claims").exists()


@pytest.mark.slow
def test_what_a_killed_process_held_is_done_by_the_others(tmp_path, grid):
    first, second = grid(seconds=1.0), grid(seconds=1.0)
    until(lambda: len({parent for _, parent in started(tmp_path)}) == 2, "both are at work")
    first.kill()
    heard, failed = ended(second)
    assert failed == {}
    assert sorted(name for name, event in heard if event in ("result", "kept")) == sorted(RUNS)
    times = Counter(name for name, _ in started(tmp_path))
    assert sorted(times) == sorted(RUNS)
    assert sum(times.values()) <= len(RUNS) + 1  # the one that was killed in the middle


@pytest.mark.slow
def test_a_process_that_is_not_to_wait_names_what_others_still_do(tmp_path, grid):
    first = grid(seconds=600)
    until(lambda: started(tmp_path), "a run is at work")
    heard, failed = ended(grid(seconds=0, wait=False))
    assert failed == {}
    assert [name for name, event in heard if event == "left"] == [RUNS[0]]
    assert sorted(name for name, event in heard if event == "result") == sorted(RUNS[1:])
    assert first.poll() is None


@pytest.mark.slow
def test_a_run_that_fails_is_tried_once_and_every_process_says_so(tmp_path, grid):
    fails = "if folder.name == 'sst2.lora.s0': sys.exit(3)"
    ends = [ended(process) for process in [grid(seconds=1.0, finish=fails) for _ in range(2)]]
    assert Counter(name for name, _ in started(tmp_path)) == dict.fromkeys(RUNS, 1)
    for _, failed in ends:
        assert list(failed) == [RUN]
        assert "ended with exit code 3" in failed[RUN]


def test_what_others_do_with_other_settings_is_refused(tmp_path):
    with Claims(tmp_path) as theirs:
        assert theirs.claim(RUN)
        config = CompareConfig(tasks=("sst2",), methods=("lora",), seeds=1, out=tmp_path)
        RunFolder(tmp_path / RUN).write_request(to_json(config.runs()[0]))
        other = CompareConfig(
            tasks=("sst2",), methods=("lora",), seeds=1, out=tmp_path, train=TrainOptions(epochs=9.0)
        )
        with pytest.raises(RankwiseError, match=r"train\.epochs"):
            run_grid(other, lambda name, event: None)
