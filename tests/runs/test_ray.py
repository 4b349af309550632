"""A grid on Ray: its table is the plain one's, whatever is lost, each run is done once, and no process of Ray is left behind.

Runs are real, on tiny models. They, Ray's nodes and the program are processes that load `SITE` as they start.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rankwise.cli import main
from rankwise.config import DataOptions, ModelOptions
from rankwise.errors import RankwiseError
from rankwise.report import collect
from rankwise.run_folder import RunFolder, run_folders
from rankwise.runs import ray_work
from rankwise.runs.claims import Claims
from rankwise.runs.config import CompareConfig
from rankwise.runs.grid import run_grid
from rankwise.runs.ray_driver import do_run, share
from tiny import model_folder, sst2_folder

HAS_RAY = importlib.util.find_spec("ray") is not None
TESTS = Path(__file__).parents[1]
SITE = """
import os, sys, time
from functools import partial
from pathlib import Path
if "rankwise.runs.worker" in sys.orig_argv:
    folder = Path(sys.orig_argv[-1])
    with folder.parent.with_suffix(".started").open("a") as file:
        file.write(f"{folder.name} {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
    import disturbed
    held, marker = os.environ.get("HELD"), folder.parent.with_suffix(".held")
    if held == "slow":
        from rankwise.run_folder import RunFolder
        append = RunFolder.append_steps
        RunFolder.append_steps = lambda *given: (append(*given), time.sleep(0.5))
    elif held:
        disturbed.checkpoint_every_step()
        if held in (folder.name, "any") and not marker.exists():
            disturbed.disturb("step 5", partial(disturbed.stand_still, str(marker)))
"""
"""Python's `sitecustomize`. A run's process notes that it was started. HELD is `slow`, or the run, or `any`, that stands
still after step 5 when it is first done."""
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
small = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **small})
node = cluster.add_node(**small, env_vars={"HELD": "any"})
print(cluster.address, node.all_processes["raylet"][0].process.pid, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
"""A cluster of two nodes, each with a CPU and what Ray takes for a GPU. On the second a run stands still. It ends with
its standard input."""
RUNS = ["sst2.full.s0", "sst2.head.s0"]
MEASURED = {"seconds", "memory"}


def needs_ray(test):
    """Mark a test that starts Ray."""
    return pytest.mark.slow(pytest.mark.skipif(not HAS_RAY, reason="ray isn't installed")(test))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model, a task, and SITE."""
    here = tmp_path_factory.mktemp("ray")
    sst2_folder(here / "glue", 40, 20)
    model_folder(here / "model")
    (here / "site").mkdir()
    (here / "site" / "sitecustomize.py").write_text(SITE)
    return here


@pytest.fixture(scope="module")
def start(place):
    """Starts Python in `place`, in a group of processes of its own."""
    path = os.pathsep.join([str(place / "site"), str(TESTS), os.environ.get("PYTHONPATH", "")])
    settings = {"XDG_CACHE_HOME": str(place / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **settings, "PYTHONPATH": path, "RAY_worker_niceness": "0"}
    started = []

    def begin(*arguments: object, held: str = "") -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=place,
            env={**environment, "HELD": held},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        if not process.stdout.closed:
            process.communicate()


@pytest.fixture(scope="module")
def compare(start):
    """Starts `rankwise compare` over two runs of ten steps."""
    options = "--tasks sst2 --methods full head --seeds 1 --epochs 1 --batch-size 4 --lr 3e-3 --data glue --model model"
    command = ["-m", "rankwise", "compare", *options.split()]
    return lambda out, *more, held="", threads=1: start(
        *command, "--out", out, "--threads", threads, *more, held=held
    )


@pytest.fixture(scope="module")
def undisturbed(compare, place) -> dict[str, tuple]:
    """What the runs make without Ray."""
    ended(compare("plain"))
    return made(place / "plain")


def made(out: Path) -> dict[str, tuple]:
    """All that the runs of a grid made, and its table, but for what a process measures of itself."""
    found: dict[str, tuple] = {}
    for run in run_folders(out):
        steps = [{k: v for k, v in step.items() if k not in MEASURED} for step in run.read_steps()]
        found[run.path.name] = (run.read_result()["scores"], steps, run.read_predictions().to_pylist())
    rows = [(row.method, row.score, row.difference, row.p_rows, row.trainable) for row in collect(out).rows]
    return found | {"table": tuple(rows)}


def starts(out: Path) -> list[list[str]]:
    """For each process that did a run: the run, the process's number, and the GPUs it was given."""
    file = out.with_suffix(".started")
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def times(out: Path) -> list[int]:
    """How many processes did each run."""
    return [sum(name == run for name, *_ in starts(out)) for run in RUNS]


def wait_until(holds, what: str):
    for _ in range(6_000):
        if found := holds():
            return found
        time.sleep(0.05)
    raise AssertionError(f"never happened: {what}")


def ended(process: subprocess.Popen, code: int = 0) -> str:
    """What it printed."""
    out, errors = process.communicate(timeout=500)
    assert process.returncode == code, out + errors
    assert code or not errors
    return out + errors


def left(place: Path) -> list[list[str]]:
    """The command lines of the processes that were started here and are alive."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(place / "site") in process.environ().get("PYTHONPATH", ""):
                found.append(process.cmdline())
    return found


@needs_ray
def test_a_local_cluster_makes_the_plain_table_prints_nothing_of_its_own_and_is_gone(
    place, compare, undisturbed
):
    said = ended(compare("local", "--ray", "local"))
    assert times(place / "local") == [1, 1]
    assert made(place / "local") == undisturbed
    assert all(f"{run}: accuracy" in said for run in RUNS)
    assert "ray" not in said.lower()
    assert not (place / "local" / "ray.log").exists()
    wait_until(lambda: not left(place), "no process is left")


@needs_ray
def test_what_a_killed_node_did_is_done_by_another_and_nothing_twice(place, start, compare, undisturbed):
    out = place / "nodes"
    cluster = start("-c", CLUSTER)
    address, raylet = cluster.stdout.readline().split()
    grid = compare("nodes", "--ray", address)
    wait_until(lambda: out.with_suffix(".held").exists(), "a run stands still")
    node = psutil.Process(int(raylet))
    killed = [node, *node.children(recursive=True)]
    (held,) = (name for name, pid, _ in starts(out) if int(pid) in {process.pid for process in killed})
    steps = out / held / "steps.jsonl"
    before = steps.read_bytes().splitlines()
    for process in killed:
        process.kill()
    said = ended(grid)
    assert f"{held}: Its node or process was lost" in said
    assert times(out) == [1 + (run == held) for run in RUNS]
    assert steps.read_bytes().splitlines()[: len(before) - 1] == before[:-1]  # the last one has no checkpoint
    assert made(out) == undisturbed
    assert [gpus for *_, gpus in starts(out)] == ["0"] * 3
    cluster.communicate("")


@needs_ray
def test_a_run_whose_process_of_ray_is_killed_is_done_again(place, compare, undisturbed):
    out, held = place / "process", RUNS[1]
    grid = compare("process", "--ray", "local", held=held)
    wait_until(lambda: out.with_suffix(".held").exists(), "a run stands still")
    (worker,) = (int(pid) for name, pid, _ in starts(out) if name == held)
    psutil.Process(worker).parent().kill()
    said = ended(grid)
    assert f"{held}: Its node or process was lost" in said
    assert times(out) == [1, 2]
    assert made(out) == undisturbed


@needs_ray
def test_ctrl_c_has_tasks_save_their_state_and_the_command_continues_without_ray(place, compare, undisturbed):
    out = place / "stopped"
    grid = compare("stopped", "--ray", "local", held="slow")
    steps = [out / run / "steps.jsonl" for run in RUNS]
    wait_until(lambda: any(file.exists() and file.stat().st_size for file in steps), "a run trains")
    os.killpg(grid.pid, signal.SIGINT)  # as a terminal does
    said = ended(grid, 130)
    assert "The same command continues" in said
    wait_until(lambda: not left(place), "no process is left")
    assert not (out / ".claims").exists()
    begun = {run: file.read_bytes() for run in RUNS if (file := out / run / "steps.jsonl").exists()}
    saved = [run for run in begun if RunFolder(out / run).checkpoint]
    assert saved
    ended(compare("stopped"))
    for run in saved:
        assert (out / run / "steps.jsonl").read_bytes().startswith(begun[run])
    assert made(out) == undisturbed


@needs_ray
def test_ray_and_a_process_beside_it_share_a_grid(place, compare, undisturbed):
    processes = [compare("shared", "--ray", "local", held="slow"), compare("shared", held="slow")]
    for process in processes:
        said = ended(process)
        assert all(f"{run}: accuracy" in said for run in RUNS)
    assert times(place / "shared") == [1, 1]
    assert made(place / "shared") == undisturbed


@needs_ray
@pytest.mark.parametrize(
    ("address", "threads", "why"),
    [
        ("127.0.0.1:1", 1, "No Ray cluster answers at 127.0.0.1:1: Connection refused."),
        ("nowhere", 1, "Ray can't be used at nowhere: "),
        ("local", 1000, "No node of the Ray cluster has 1000 CPUs for a run"),
    ],
)
def test_what_ray_cannot_do_is_refused_with_a_sentence(place, compare, address, threads, why):
    said = ended(compare("refused", "--ray", address, threads=threads), 2)
    assert why in said
    assert len(said.splitlines()) == 1
    assert not starts(place / "refused")
    wait_until(lambda: not left(place), "no process is left")


@needs_ray
def test_an_address_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_work, "CONNECT_SECONDS", 8.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        config = CompareConfig(tasks=("sst2",), methods=("lora",), out=tmp_path, ray=address)
        with pytest.raises(RankwiseError, match=f"No Ray cluster answers at {address} within 8 s"):
            run_grid(config, lambda name, event: None)


def test_without_ray_one_sentence_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--ray", "local", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said == (
        "--ray needs the package ray. Install it (pip install 'rankwise[ray]'), or leave the option out.\n"
    )
    assert not (tmp_path / "out").exists()


def test_the_cluster_decides_how_many_runs_are_done_at_a_time():
    with pytest.raises(RankwiseError, match="Leave out `jobs=`"):
        CompareConfig(ray="local", jobs=2)


@pytest.mark.parametrize(
    ("device", "threads", "nodes", "cpus", "gpus"),
    [
        ("cpu", 4, [{"CPU": 8.0}, {"CPU": 2.0}], 4, 0),
        ("auto", None, [{"CPU": 8.0}, {"CPU": 6.0}], 6, 0),
        ("auto", None, [{"CPU": 32.0, "GPU": 8.0}, {"CPU": 2.0}], 4, 1),
        ("cuda", 2, [{"CPU": 16.0, "GPU": 1.0}], 2, 1),
        ("cpu", None, [{"CPU": 16.0, "GPU": 4.0}], 16, 0),
        ("auto", None, [{"CPU": 2.0, "GPU": 4.0}], 1, 1),
        ("auto", None, [{"memory": 1e9}, {"CPU": 2.0}], 2, 0),
    ],
)
def test_a_run_gets_its_threads_as_cpus_and_one_gpu_where_it_trains_on_one(
    device, threads, nodes, cpus, gpus
):
    config = CompareConfig(model=ModelOptions(device=device, threads=threads))
    assert share(config, nodes) == (cpus, gpus)


@pytest.mark.parametrize(
    ("device", "threads", "nodes", "why"),
    [
        ("cuda", None, [{"CPU": 8.0}], "has a CPU and a GPU for a run. Give another `device=`"),
        ("cpu", 9, [{"CPU": 8.0}, {}], "has 9 CPUs for a run; the most that one has is 8. Give fewer"),
        ("auto", 9, [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}], "has 9 CPUs and a GPU for a run; the most"),
    ],
)
def test_a_run_that_fits_on_no_node_is_refused(device, threads, nodes, why):
    config = CompareConfig(model=ModelOptions(device=device, threads=threads))
    with pytest.raises(RankwiseError, match=why):
        share(config, nodes)


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    config = CompareConfig(tasks=("sst2",), methods=("lora",), out=tmp_path / "out")
    why = do_run(config, "sst2.lora.s0", None, 1, "another folder's", str(tmp_path))
    assert why == (
        f"{socket.gethostname()} sees another {tmp_path / 'out'} or none. "
        "With `ray=`, `out=` has to be a folder that all nodes share."
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_task_says_why_its_run_failed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    config = CompareConfig(
        tasks=("sst2",), methods=("lora",), out=tmp_path / "out", data=DataOptions(data=Path("nowhere"))
    )
    with Claims(config.out) as claims:
        why = do_run(config, "sst2.lora.s0", None, 1, claims.token, str(tmp_path))
        assert why
        assert "nowhere" in why
        assert not claims.claimed()
