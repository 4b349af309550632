"""Measure LoRA on `movies` with the embedded model: speed beside PEFT + Trainer on the same batches, and the time to the first step.

    python benchmarks/movies.py > movies.json

Both sides train on the same batches, grouped by length and padded to the longest row, in bfloat16 where the CPU has it. They take
turns. The time to the first step is from starting `rankwise train` to the first line of `steps.jsonl`. One start before the timed
ones warms the caches. The result is one JSON object on stdout; progress goes to stderr.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from rankwise.bench import BenchConfig
from rankwise.bench.measurement import bench
from rankwise.cli.bench_progress import BenchProgress
from rankwise.engine.measure import Spread

CONTENDERS = ("rankwise lora padded", "peft lora sdpa", "peft lora eager")
PATIENCE = 300.0
"""Seconds after which waiting for a first step ends."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="minilm", help="`minilm` (embedded), or a folder [%(default)s]")
    parser.add_argument("--rows", type=int, default=1600, help="rows per repeat [%(default)s]")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contender [%(default)s]")
    parser.add_argument("--starts", type=int, default=5, help="timed starts of a run [%(default)s]")
    parser.add_argument("--threads", type=int, help="CPU threads [every core]")
    asked = parser.parse_args()
    config = BenchConfig(
        model=asked.model,
        lengths="movies",
        batch_size=32,
        rows=asked.rows,
        repeats=asked.repeats,
        contenders=CONTENDERS,
        threads=asked.threads,
    )
    with BenchProgress(sys.stderr) as progress:
        result = bench(config, progress)
    starts = [first_step(asked.model, asked.threads) for _ in range(1 + asked.starts)][1:]
    print(f"first step after {' '.join(f'{seconds:.1f}' for seconds in starts)} s", file=sys.stderr)
    print(json.dumps({**result, "first_step_seconds": asdict(Spread.of(starts))}, ensure_ascii=False))


def first_step(model: str, threads: int | None) -> float:
    """Return the seconds from starting a run to its first step, after which the run is ended."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "rankwise", "train", "--task", "movies", "--method", "lora"]
        command += ["--model", model, "--out", str(out)] + (["--threads", str(threads)] if threads else [])
        log = (Path(folder) / "log").open("w+b")
        started = time.perf_counter()
        run = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            return _wait(run, out / "steps.jsonl", started)
        except RuntimeError as error:
            log.seek(0)
            said = log.read().decode(errors="replace").strip()
            raise SystemExit(f"{error}. It said:\n{said}") from None
        finally:
            run.kill()
            run.wait()
            log.close()


def _wait(run: subprocess.Popen[bytes], steps: Path, started: float) -> float:
    while True:
        ended = run.poll() is not None
        seconds = time.perf_counter() - started
        if steps.exists() and b"\n" in steps.read_bytes():
            return seconds
        if ended or seconds > PATIENCE:
            raise RuntimeError(f"No first step after {seconds:.0f} s")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
