"""A soak: thousands of short runs in one grid. Does its process grow, do runs take longer, and how long does the report take?

    python studies/soak.py --runs 2000        # stores studies/soak.json, writes docs/scaling.md
    python studies/soak.py --show             # writes docs/scaling.md from what is stored

`rankwise compare` runs a tiny model with random weights, four methods, as many seeds as it takes, two runs at a time. Each run is a process
of its own, forked from one that has imported everything (tests/faults/nursery.py): importing takes seconds, and a run a fraction of one.
While they run, the memory of the grid's process is read, and the time at which each result was written.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny
from faults import nursery

STORED = Path(__file__).with_suffix(".json")
METHODS, ROWS, BATCH, JOBS = ("full", "lora", "head", "bitfit"), 40, 4, 2
SAMPLE_SECONDS = 2.0
SKIPPED = 0.1
"""Share of the runs at the beginning that no slope counts: memory that is taken once, and caches that fill."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=2_000, help="runs of the grid")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    if not asked.show:
        STORED.write_text(json.dumps(soak(asked.runs)) + "\n", encoding="utf-8")
    sys.path.insert(0, str(Path(__file__).parent / "figures"))
    import scaling_page

    scaling_page.PAGE.write_text(scaling_page.with_tables(scaling_page.PAGE.read_text(encoding="utf-8")))


def soak(runs: int) -> dict[str, Any]:
    """Run a grid of so many runs; return samples of its process, the time of each result, and what the report took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.sst2_folder(folder / "glue", ROWS, 20)
        out = folder / "runs"
        command = [
            "compare",
            "--tasks",
            "sst2",
            "--methods",
            *METHODS,
            "--seeds",
            str(-(-runs // len(METHODS))),
        ]
        command += ["--data", str(folder / "glue"), "--model", str(tiny.model_folder(folder / "model"))]
        command += ["--epochs", "1", "--batch-size", str(BATCH), "--lr", "3e-3", "--threads", "1"]
        command += ["--jobs", str(JOBS), "--out", str(out)]
        with nursery.serving(folder) as address, (folder / "log").open("wb") as log:
            with Path(os.devnull).open("rb") as nothing:
                connection, pid = nursery.ask(
                    address, command, (nothing.fileno(), log.fileno(), log.fileno())
                )
            samples = _watch(pid, out)
            if code := nursery.code_of(connection):
                raise SystemExit(f"The grid ended with {code}: {(folder / 'log').read_text()[-2000:]}")
        finished = sorted(file.stat().st_mtime for file in out.glob("*/result.json"))
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "rankwise", "report", str(out)], check=True, stdout=subprocess.DEVNULL
        )
        report = time.perf_counter() - begun
    return {"samples": samples, "finished": [at - finished[0] for at in finished], "report_seconds": report}


def _watch(pid: int, out: Path) -> list[tuple[int, float]]:
    """Return, every two seconds until a process ends, how many runs are finished, and its resident memory in MB."""
    samples = []
    while True:
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            resident = int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6
        except (OSError, IndexError):  # it has ended
            return samples
        samples.append((sum(1 for _ in out.glob("*/result.json")), resident))
        print(samples[-1], file=sys.stderr)
        time.sleep(SAMPLE_SECONDS)


def memory_slope(found: dict[str, Any]) -> dict[str, float]:
    """Return the KB that each further run adds to the grid's process, with a 95 % interval."""
    samples = np.array(found["samples"])
    later = samples[samples[:, 0] >= SKIPPED * samples[-1, 0]]
    return _line(later[:, 0], later[:, 1] * 1e3)


def time_slope(found: dict[str, Any]) -> dict[str, float]:
    """Return the ms by which a run takes longer for each run before it, with a 95 % interval; `mean` is the time of a run in ms.

    It goes by the mean times of fifty groups of runs that follow each other, JOBS at a time.
    """
    finished = np.array(found["finished"])
    groups = np.array_split(np.arange(int(SKIPPED * len(finished)), len(finished)), 50)
    middles = np.array([group.mean() for group in groups])
    spans = np.array([(finished[group[-1]] - finished[group[0] - 1]) / len(group) for group in groups])
    return _line(middles, JOBS * spans * 1e3) | {"mean": JOBS * float(spans.mean()) * 1e3}


def _line(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    line: Any = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(x) - 2) * line.stderr)
    return {"slope": float(line.slope), "low": line.slope - half, "high": line.slope + half}


if __name__ == "__main__":
    main()
