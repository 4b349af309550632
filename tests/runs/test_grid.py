"""Many runs as processes: their order, their failures, more than one at a time, and that none outlives its grid.

The processes are small scripts that end as they are told to; what a real one does is in test_resume.py.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rankwise.config import DataOptions, LoraOptions, TrainOptions
from rankwise.errors import RankwiseError
from rankwise.run_folder import RESULT, RunFolder, read_grid
from rankwise.runs.config import CompareConfig
from rankwise.runs.grid import run_grid

WORKER = f"""
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
request = json.loads((folder / "run.json").read_text())["requested"]
def tell(event, **entries):
    print(json.dumps({{"event": event, **entries}}), flush=True)
def finish(**entries):
    result = dict.fromkeys({RESULT!r}, 0) | {{"model": "", "metric": "", "scores": {{}}}}
    result |= {{key: request[key] for key in ("task", "method", "seed")}}
    (folder / "result.json").write_text(json.dumps(result | entries))
    tell("result", **result)
with (folder.parent / "started").open("a") as file:
    file.write(folder.name + "\\n")
(folder / "pid").write_text(str(os.getpid()))
"""
"""What every fake worker begins with; it then does what its last argument says."""


def worker(*cases: str, **by_name: str):
    """A command whose process does what is said for its run's folder name, or else for every run."""

    def command(folder: Path) -> list[str]:
        code = by_name.get(folder.name.replace(".", "_"), cases[0] if cases else "finish()")
        return [sys.executable, "-S", "-E", "-c", WORKER + code, str(folder)]

    return command


def grid(out: Path, **options) -> CompareConfig:
    return CompareConfig(
        **{"tasks": ("sst2",), "methods": ("full", "lora"), "seeds": 1, "out": out, **options}
    )


class Heard(list):
    """Every event, as (run, event)."""

    def __call__(self, name, event):
        self.append((name, event))

    def of(self, kind: str) -> list[str]:
        return [name for name, event in self if event["event"] == kind]


def ran(config: CompareConfig, command=None) -> tuple[Heard, dict[str, str]]:
    heard = Heard()
    return heard, run_grid(config, heard, command=command or worker())


def started(out: Path) -> list[str]:
    file = out / "started"
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def wait_until(holds, what: str):
    """Waits for something to become true; a minute means that it never will."""
    for _ in range(6000):
        found = holds()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"never happened: {what}")


def pid_in(folder: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int((folder / "pid").read_text(encoding="utf-8"))
    return None


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):  # a zombie has ended, whoever has yet to collect it
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    return True


# Order


def test_a_seed_is_finished_for_every_task_and_method_before_the_next(tmp_path):
    heard, failed = ran(grid(tmp_path, tasks=("sst2", "rte"), seeds=2))
    order = [
        f"{task}.{method}.s{seed}"
        for seed in (0, 1)
        for task in ("sst2", "rte")
        for method in ("full", "lora")
    ]
    assert failed == {}
    assert started(tmp_path) == order
    assert heard.of("planned") == heard.of("result") == order
    assert [event["event"] for _, event in heard[: len(order)]] == ["planned"] * len(order)


def test_a_run_is_told_its_settings_and_what_it_is_assigned(tmp_path):
    config = grid(
        tmp_path,
        methods=("lora:rank=4",),
        keep_models=True,
        train=TrainOptions(epochs=2.0),
        lora=LoraOptions(rank=3),
    )
    ran(config)
    record = RunFolder(tmp_path / "sst2.lora-rank-4.s0").read_run()
    requested = record["requested"]
    assert (requested["task"], requested["method"], requested["seed"]) == ("sst2", "lora:rank=4", 0)
    assert (requested["train"]["epochs"], requested["lora"]["rank"]) == (2.0, 3)
    assert record["assigned"]["keep_model"] is True
    assert record["assigned"]["shared_machine"] is False
    assert record["assigned"]["threads"] >= 1


def test_naming_a_method_twice_runs_it_once(tmp_path):
    heard, failed = ran(grid(tmp_path, methods=("lora", "full", "lora"), tasks=("sst2", "sst2"), jobs=2))
    assert failed == {}
    assert sorted(started(tmp_path)) == ["sst2.full.s0", "sst2.lora.s0"]
    assert sorted(heard.of("planned")) == ["sst2.full.s0", "sst2.lora.s0"]


def test_methods_that_would_share_a_folder_are_refused(tmp_path):
    with pytest.raises(
        RankwiseError, match=r"lora:targets=a\+b and lora:targets=a\.b would share the folder"
    ):
        ran(grid(tmp_path, methods=("lora:targets=a+b", "lora:targets=a.b")))
    assert started(tmp_path) == []


def test_what_a_library_prints_is_no_event(tmp_path):
    chatter = """
print("loading", flush=True); print('{"loss": 1}'); print("[1, 2]"); print("3"); print("{broken")
sys.stdout.buffer.write(b"\\xff\\xfe\\n")
finish()
"""
    heard, failed = ran(grid(tmp_path, methods=("lora",)), worker(chatter))
    assert failed == {}
    assert [event["event"] for _, event in heard] == ["planned", "result"]


# What ends badly


def test_a_failed_run_says_its_sentence_and_the_grid_goes_on(tmp_path):
    command = worker(sst2_full_s0='tell("error", message="The loss is nan at step 3 of 9."); sys.exit(2)')
    heard, failed = ran(grid(tmp_path), command)
    assert failed == {"sst2.full.s0": "The loss is nan at step 3 of 9."}
    assert heard.of("failed") == ["sst2.full.s0"]
    assert heard.of("result") == ["sst2.lora.s0"]
    assert RunFolder(tmp_path / "sst2.full.s0").read_run()["failed"] == "The loss is nan at step 3 of 9."


def test_a_run_without_a_sentence_points_to_its_log(tmp_path):
    _, failed = ran(grid(tmp_path, methods=("full",)), worker('raise ValueError("last words")'))
    log = tmp_path / "sst2.full.s0" / "log.txt"
    assert failed == {"sst2.full.s0": f"The process ended with exit code 1; see its last output in {log}."}
    assert "ValueError: last words" in log.read_text(encoding="utf-8")


def test_a_run_that_ends_well_without_a_result_has_failed(tmp_path):
    _, failed = ran(grid(tmp_path, methods=("full",)), worker(""))
    assert "ended with exit code 0" in failed["sst2.full.s0"]


def test_a_killed_run_takes_nothing_else_down(tmp_path):
    command = worker(sst2_full_s0="os.kill(os.getpid(), signal.SIGKILL)")
    heard, failed = ran(grid(tmp_path), command)
    assert list(failed) == ["sst2.full.s0"]
    assert failed["sst2.full.s0"].startswith("The process was killed by SIGKILL; ")
    assert heard.of("result") == ["sst2.lora.s0"]


def test_a_process_that_breaks_after_its_result_has_not_failed(tmp_path):
    _, failed = ran(grid(tmp_path, methods=("full",)), worker("finish(); os.abort()"))
    assert failed == {}


def test_what_failed_is_tried_again_and_forgotten_when_it_ends_well(tmp_path):
    ran(grid(tmp_path), worker(sst2_full_s0="sys.exit(1)"))
    heard, failed = ran(grid(tmp_path))
    assert failed == {}
    assert heard.of("kept") == ["sst2.lora.s0"]
    assert heard.of("result") == ["sst2.full.s0"]
    assert RunFolder(tmp_path / "sst2.full.s0").read_run()["failed"] is None


# Several at a time


def test_two_jobs_run_two_at_a_time(tmp_path):
    """Each of a pair waits until it sees the other; alone it would wait for ever."""
    pair = """
other = folder.with_name(folder.name.replace("full", "x").replace("lora", "full").replace("x", "lora"))
deadline = time.monotonic() + 60
while not (other / "pid").exists():
    if time.monotonic() > deadline: sys.exit("nobody came")
    time.sleep(0.005)
finish()
"""
    _, failed = ran(grid(tmp_path, seeds=2, jobs=2), worker(pair))
    assert failed == {}
    assert len(started(tmp_path)) == 4
    assert all(run.read_run()["assigned"]["shared_machine"] for run in map(RunFolder, tmp_path.glob("*.s?")))


@pytest.mark.parametrize("jobs", [1, 2])
def test_no_more_than_the_jobs_asked_for_run_at_a_time(tmp_path, jobs):
    counting = """
running = folder.parent / "running"
running.mkdir(exist_ok=True)
mark = running / folder.name
mark.touch()
time.sleep(0.03)
seen = len(list(running.iterdir()))
mark.unlink()
finish(score=seen)
"""
    heard, failed = ran(grid(tmp_path, seeds=3, jobs=jobs), worker(counting))
    assert failed == {}
    assert len(heard.of("result")) == 6
    seen = [RunFolder(path).read_result()["score"] for path in tmp_path.glob("*.s?")]
    assert len(seen) == 6
    assert max(seen) <= jobs


def test_two_jobs_share_the_threads_unless_they_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr("rankwise.runs.work.cores", lambda: 8)
    ran(grid(tmp_path, methods=("lora",), jobs=2))
    assert RunFolder(tmp_path / "sst2.lora.s0").read_run()["assigned"]["threads"] == 4


@pytest.mark.parametrize("jobs", [(1, 2), (2, 1)])
def test_a_run_that_shared_the_machine_for_a_part_of_it_did_share_it(tmp_path, jobs):
    for n in jobs:
        ran(grid(tmp_path, methods=("full",), jobs=n), worker("sys.exit(1)"))
    assert RunFolder(tmp_path / "sst2.full.s0").read_run()["assigned"]["shared_machine"] is True


def test_continuing_keeps_the_threads_of_the_first_start(tmp_path, monkeypatch):
    monkeypatch.setattr("rankwise.runs.work.cores", lambda: 8)
    ran(grid(tmp_path, methods=("full",), jobs=4), worker("sys.exit(1)"))
    ran(grid(tmp_path, methods=("full",)))
    assert RunFolder(tmp_path / "sst2.full.s0").read_run()["assigned"]["threads"] == 2


# The same folder again


def test_finished_runs_are_kept(tmp_path):
    ran(grid(tmp_path))
    heard, failed = ran(grid(tmp_path), worker("sys.exit(1)"))
    assert failed == {}
    assert heard.of("kept") == ["sst2.full.s0", "sst2.lora.s0"]
    assert len(started(tmp_path)) == 2


def test_more_tasks_methods_and_seeds_are_added(tmp_path):
    ran(grid(tmp_path, methods=("lora",)))
    heard, _ = ran(grid(tmp_path, seeds=2))
    assert heard.of("kept") == ["sst2.lora.s0"]
    assert heard.of("result") == ["sst2.full.s0", "sst2.full.s1", "sst2.lora.s1"]
    heard, _ = ran(grid(tmp_path, tasks=("rte",), methods=("lora:rank=2",)))
    assert heard.of("result") == ["rte.lora-rank-2.s0"]
    asked = read_grid(tmp_path)
    assert asked["tasks"] == ["sst2", "rte"]
    assert asked["methods"] == ["lora", "full", "lora:rank=2"]
    assert asked["seeds"] == 2


def test_a_changed_setting_is_refused_with_the_difference(tmp_path):
    ran(grid(tmp_path, train=TrainOptions(epochs=3.0)))
    changed = grid(tmp_path, seeds=2, train=TrainOptions(epochs=1.0), data=DataOptions(limit_train=7))
    with pytest.raises(RankwiseError) as refused:
        ran(changed)
    assert str(refused.value) == (
        f"{tmp_path} holds runs with other settings: data.limit_train: None there, 7 now; "
        "train.epochs: 3.0 there, 1.0 now. Give another `out=`, or the settings there."
    )
    assert len(started(tmp_path)) == 2
    assert read_grid(tmp_path)["train"]["epochs"] == 3.0


def test_a_changed_setting_of_a_run_with_a_checkpoint_is_refused_too(tmp_path):
    ran(grid(tmp_path, methods=("full",)), worker("sys.exit(1)"))
    (tmp_path / "sst2.full.s0" / "checkpoint-1").mkdir()
    with pytest.raises(RankwiseError, match=r"lora\.rank: None there, 4 now"):
        ran(grid(tmp_path, methods=("full",), lora=LoraOptions(rank=4)))


def test_a_run_that_failed_without_checkpoint_may_get_other_settings(tmp_path):
    ran(grid(tmp_path, methods=("full",)), worker("sys.exit(1)"))
    folder = RunFolder(tmp_path / "sst2.full.s0")
    folder.update_run_json(facts={"threads": 77})
    ran(grid(tmp_path, methods=("full",), lora=LoraOptions(rank=4)))
    assert folder.finished
    assert folder.read_run()["requested"]["lora"]["rank"] == 4
    assert folder.read_run().get("facts") is None


def test_jobs_and_kept_models_are_no_settings_of_a_run(tmp_path):
    ran(grid(tmp_path))
    heard, _ = ran(grid(tmp_path, jobs=2, keep_models=True))
    assert heard.of("kept") == ["sst2.full.s0", "sst2.lora.s0"]


@pytest.mark.parametrize("file", ["run.json", "result.json"])
@pytest.mark.parametrize("content", ["{", "null", "[" * 60_000, '{"requested": []}', '{"task": NaN}'])
def test_a_damaged_run_is_named_and_the_others_go_on(tmp_path, file, content):
    ran(grid(tmp_path, methods=("full",)))
    damaged = tmp_path / "sst2.full.s0" / file
    damaged.write_text(content, encoding="utf-8")
    heard, failed = ran(grid(tmp_path, seeds=2))
    assert list(failed) == ["sst2.full.s0"]
    assert f"sst2.full.s0/{file} is damaged" in failed["sst2.full.s0"]
    assert failed["sst2.full.s0"].endswith("Remove its folder to run it again.")
    assert heard.of("failed") == ["sst2.full.s0"]
    assert sorted(heard.of("result")) == ["sst2.full.s1", "sst2.lora.s0", "sst2.lora.s1"]
    assert damaged.read_text(encoding="utf-8") == content


def test_a_finished_run_that_no_longer_says_what_it_was_is_not_trusted(tmp_path):
    ran(grid(tmp_path))
    (tmp_path / "sst2.lora.s0" / "run.json").unlink()
    _, failed = ran(grid(tmp_path))
    assert "sst2.lora.s0/run.json is missing" in failed["sst2.lora.s0"]


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of its own, with 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


FILLS = """
def fill():
    with (folder / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
try:
    fill()
except OSError as error:
    tell("error", message=str(error)); sys.exit(2)
"""


def test_a_full_disk_ends_one_run_after_the_other_and_not_the_grid(small_disk):
    """What a failed run says can't be written any more, and neither can what the next one is asked for."""
    heard, failed = ran(grid(small_disk, seeds=2), worker(sst2_full_s0=FILLS))
    assert list(failed) == heard.of("failed") == [f"sst2.{m}.s{s}" for s in (0, 1) for m in ("full", "lora")]
    assert all("No space left on device" in why for why in failed.values()), failed
    (small_disk / "sst2.full.s0" / "filler").unlink()
    heard, failed = ran(grid(small_disk, seeds=2))
    assert failed == {}
    assert len(heard.of("result")) == 4


def test_a_disk_that_is_full_for_a_while_costs_the_runs_of_that_while(small_disk):
    command = worker(
        sst2_full_s0=FILLS.replace("sys.exit(2)", "(folder / 'filler').unlink(); sys.exit(2)"),
    )
    heard, failed = ran(grid(small_disk), command)
    assert list(failed) == ["sst2.full.s0"]
    assert heard.of("result") == ["sst2.lora.s0"]


def test_a_checkpoint_left_behind_by_a_finished_run_is_removed(tmp_path):
    ran(grid(tmp_path, methods=("full",)))
    (tmp_path / "sst2.full.s0" / "checkpoint-3").mkdir()
    ran(grid(tmp_path, methods=("full",)))
    assert not (tmp_path / "sst2.full.s0" / "checkpoint-3").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(RankwiseError, match="taken can't be written"):
        ran(grid(tmp_path / "taken"))


def test_a_failed_grid_can_run_again_in_the_same_process(tmp_path):
    ran(grid(tmp_path))
    with pytest.raises(RankwiseError) as held:  # and so the frames behind it
        ran(grid(tmp_path, train=TrainOptions(epochs=9.0)))
    heard, _ = ran(grid(tmp_path))
    assert heard.of("kept") == ["sst2.full.s0", "sst2.lora.s0"]
    assert held.value is not None


# A grid as a process of its own

GRID = """
import json, sys
from pathlib import Path
from rankwise.runs.config import CompareConfig
from rankwise.runs.grid import run_grid
out, jobs, *worker = sys.argv[1:]
config = CompareConfig(tasks=("sst2",), methods=("full", "lora"), seeds=1, out=Path(out), jobs=int(jobs))
try:
    run_grid(config, lambda name, event: None, command=lambda folder: [*worker, str(folder)])
except KeyboardInterrupt:
    sys.exit(130)
"""
HANG = WORKER + "time.sleep(600)"
DIES_WITH_PARENT = "from rankwise.runs.parent import die_with_parent; die_with_parent()\n" + HANG


@pytest.fixture
def processes():
    """Starts processes in groups of their own and leaves none behind."""
    groups = []

    def start(out: Path, code: str, jobs: int) -> subprocess.Popen:
        arguments = [sys.executable, "-c", GRID, str(out), str(jobs), sys.executable, "-c", code]
        process = subprocess.Popen(arguments, start_new_session=True)
        groups.append(process)
        return process

    yield start
    for process in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def children(out: Path, n: int):
    """Process ids of n runs, once all are at work."""
    folders = [out / "sst2.full.s0", out / "sst2.lora.s0"][:n]
    return wait_until(
        lambda: (pids := [pid_in(f) for f in folders]) and all(pids) and pids, "workers at work"
    )


def test_ctrl_c_stops_the_runs_and_the_folder_can_be_used_again(tmp_path, processes):
    process = processes(tmp_path, HANG, 2)
    pids = children(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert not any(alive(pid) for pid in pids)
    assert RunFolder(tmp_path / "sst2.full.s0").read_run()["failed"] is None
    heard, failed = ran(grid(tmp_path))
    assert failed == {}
    assert heard.of("result") == ["sst2.full.s0", "sst2.lora.s0"]


@pytest.mark.slow
def test_runs_that_do_not_listen_are_stopped_all_the_same(tmp_path, processes):
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + HANG
    process = processes(tmp_path, deaf, 1)
    (pid,) = children(tmp_path, 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert not alive(pid)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_run_outlives_its_grid_however_that_ended(tmp_path, processes, how):
    process = processes(tmp_path, DIES_WITH_PARENT, 2)
    pids = children(tmp_path, 2)
    process.send_signal(how)
    assert process.wait(timeout=60) == -how
    wait_until(lambda: not any(alive(pid) for pid in pids), "the workers ended")
    heard, _ = ran(grid(tmp_path))  # and the lock went with it
    assert heard.of("result") == ["sst2.full.s0", "sst2.lora.s0"]


@pytest.mark.slow
def test_events_reach_the_grid_whatever_the_locale(tmp_path):
    """The real worker, refused before it loads a model, with a name that ASCII can't say."""
    config = grid(tmp_path / "out", methods=("lora",), data=DataOptions(data=tmp_path / "größe"))
    command = [sys.executable, "-X", "utf8=0", "-m", "rankwise.runs.worker"]
    environment = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        _, failed = ran(config, lambda folder: [*command, str(folder)])
    assert "größe" in failed["sst2.lora.s0"]
    assert "`data=` has no" in failed["sst2.lora.s0"]
