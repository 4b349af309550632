"""What a study of thousands of runs costs in storage, in report time and in claims, and what a base of 70 billion parameters costs.

    python studies/scaling.py                 # measures all of it and stores it; writes docs/scaling.md
    python studies/scaling.py --only plan     # one part: runs, claims or plan
    python studies/scaling.py --show          # writes docs/scaling.md from what is stored

runs      One real run is copied into grids of 5 tasks × 5 methods × seeds, with other scores. `rankwise report` is timed on each grid.
claims    Processes of as many machines hold a run each in one folder. Counted is what one of them opens, lists and makes there.
plan      `rankwise plan` for Llama's 70 billion parameters in 1 and in 8 processes, from its config.json alone.

Stored as studies/scaling.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from scipy import stats

from rankwise import hardware
from rankwise.bench.plan import plan
from rankwise.config import PlanConfig
from rankwise.run_folder import RunFolder, run_name
from rankwise.runs import claims

STORED = Path(__file__).with_suffix(".json")
TASKS, METHODS = 5, 5
SIZES, REPEATS = (100, 200, 400, 800), 2
"""Runs of the grids, and how often each is reported."""
MACHINES = (1, 25, 50, 100)
TRAIN = (
    "--task",
    "movies",
    "--method",
    "lora",
    "--epochs",
    "1",
    "--limit-train",
    "160",
    "--limit-eval",
    "300",
    "--threads",
    "1",
)
LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
"""Sizes in the config.json of Llama 3.1 70B."""
PLANNED = {
    "problem": "generation",
    "lengths": "512",
    "batch_size": 16,
    "memory_mode": "lean",
    "device": "cuda",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, help="measure one part")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    found = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    for name in () if asked.show else (asked.only,) if asked.only else PARTS:
        found[name] = PARTS[name]()
        STORED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.path.insert(0, str(Path(__file__).parent / "figures"))
    import scaling_page

    scaling_page.PAGE.write_text(scaling_page.with_tables(scaling_page.PAGE.read_text(encoding="utf-8")))


# ── Runs ──────────────────────────────────────────────────────────────────────────────────────


def runs() -> dict[str, Any]:
    """Time the report on grids of several sizes, twice each; return the measurements, and the bytes of a run."""
    with tempfile.TemporaryDirectory() as name:
        folder, measured = Path(name), []
        real = folder / "run"
        _rankwise("train", *TRAIN, "--out", str(real))
        for repeat in range(REPEATS):
            for size in SIZES:
                grid = folder / "grid"
                _copies(real, grid, size)
                seconds, peak = _rankwise("report", str(grid))
                report = sum(f.stat().st_size for f in grid.iterdir() if f.is_file())
                measured.append(
                    {
                        "runs": size,
                        "repeat": repeat,
                        "seconds": seconds,
                        "peak_mb": peak,
                        "report_bytes": report,
                    }
                )
                print(measured[-1], file=sys.stderr)
                shutil.rmtree(grid)
        files = {f.name: f.stat().st_size for f in sorted(real.iterdir()) if f.is_file()}
        result = RunFolder(real).read_result()
    return {
        "measured": measured,
        "files": files,
        "of_run": {key: result[key] for key in ("steps", "n_validation", "adapter_params", "model")},
        "hardware": hardware.hardware(hardware.choose_device("cpu")),
    }


def slope(measured: list[dict[str, Any]], what: str) -> dict[str, float]:
    """Return the least-squares line through measurements: what a run adds with its 95 % interval, what none takes, and the power."""
    n, values = (np.array([one[key] for one in measured], float) for key in ("runs", what))
    line: Any = stats.linregress(n, values)
    half = stats.t.ppf(0.975, len(n) - 2) * line.stderr
    powers: Any = stats.linregress(np.log(n), np.log(np.maximum(values - line.intercept, 1e-9)))
    return {
        "slope": line.slope,
        "low": line.slope - half,
        "high": line.slope + half,
        "intercept": line.intercept,
        "power": powers.slope,
    }


def _copies(real: Path, grid: Path, size: int) -> None:
    """Fill a grid's folder with copies of a run that have other tasks, methods, seeds and scores."""
    rng = np.random.default_rng(0)
    request, result = (json.loads((real / name).read_text()) for name in ("run.json", "result.json"))
    score = result["score"]
    for i in range(size):
        seed, cell = divmod(i, TASKS * METHODS)
        task, method = f"task{cell // METHODS}", f"lora:rank={2 ** (cell % METHODS)}"
        where = grid / run_name(task, method, seed)
        shutil.copytree(real, where)
        for part in ("requested", "resolved"):
            request[part] |= {"task": task, "method": method, "seed": seed}
        request["task"]["name"] = task
        moved = float(np.clip(score + rng.normal(0, 0.01), 0, 1))
        metric, split = result["metric"], next(iter(result["scores"]))
        result |= {"task": task, "method": method, "seed": seed, "score": moved}
        result["scores"][split][metric] = moved
        (where / "run.json").write_text(json.dumps(request))
        (where / "result.json").write_text(json.dumps(result))


def _rankwise(*arguments: str) -> tuple[float, float]:
    """Run a command in a process of its own; return its seconds of CPU time and its peak of resident memory in MB.

    CPU time, because other processes on the machine change it less than the time on the clock.
    """
    process = subprocess.Popen([sys.executable, "-m", "rankwise", *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"rankwise {' '.join(arguments)} failed.")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6


# ── Claims ────────────────────────────────────────────────────────────────────────────────────


def claimed() -> list[dict[str, Any]]:
    """Count what a process does in the shared folder at a sign of life, and at a look at the runs of all others."""
    found, counted = [], Counter()
    watched = {
        "open": "opened",
        "os.listdir": "listed",
        "os.scandir": "listed",
        "os.link": "made",
        "os.remove": "removed",
    }
    here: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in watched and here and str(arguments[0]).startswith(here[0]):
            counted[watched[event]] += 1

    sys.addaudithook(hook)
    for machines in MACHINES:
        with tempfile.TemporaryDirectory() as name:
            processes = []
            for i in range(machines):
                with mock.patch.object(claims, "_machine", return_value=f"machine {i}"):
                    processes.append(claims.Claims(Path(name)))
                processes[i]._beat()
                processes[i].claim(f"run-{i}")
            one = processes[0]
            one.neighbours()
            here[:] = [name]
            counted.clear()
            one._beat()
            one._look_after()
            one.neighbours()
            beat = dict(counted)
            counted.clear()
            one.holders()
            found.append({"machines": machines, "beat": beat, "look": dict(counted)})
            here.clear()
    return [{"every_seconds": {"beat": claims.BEAT_SECONDS, "look": claims.POLL_SECONDS}}, *found]


# ── 70 billion parameters ─────────────────────────────────────────────────────────────────────


def planned() -> list[dict[str, Any]]:
    """Return what `rankwise plan` says in one process, and in 8 that share out the layers."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "config.json"
        file.write_text(json.dumps(LLAMA_70B))
        found = []
        for processes, shard in ((1, False), (8, False), (8, True)):
            asked = PlanConfig(
                model=str(file), methods=("lora", "adaptive"), processes=processes, shard=shard, **PLANNED
            )
            for one in plan(asked)["configurations"]:
                found.append({"processes": processes, "shard": shard} | one)
    return found


PARTS = {"runs": runs, "claims": claimed, "plan": planned}

if __name__ == "__main__":
    main()
