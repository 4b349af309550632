"""Does a warm-up of a quarter of all steps harm short runs? movies, 640 and 1,280 rows, 60 and 120 steps, by share of warm-up.

    python studies/short_runs.py           # runs what is missing, stores, prints
    python studies/short_runs.py --show    # prints what is stored

Each cell is `rankwise compare` on the embedded model and data, judged on all 1,547 validation rows. Stored as
studies/short_runs.parquet, a row a run.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rankwise.run_folder import run_folders

STORED = Path(__file__).with_suffix(".parquet")
ROWS, WARM_UPS, METHODS, SEEDS = (640, 1280), (0.06, 0.25), ("lora", "adaptive", "full"), 4
KEPT = ("method", "seed", "n_train", "steps", "score", "adapter_params")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/short"), help="where runs are kept")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    if not asked.show:
        found = []
        for rows in ROWS:
            for warm_up in WARM_UPS:
                out = asked.work / f"n{rows}.w{warm_up}"
                command = [
                    sys.executable,
                    "-m",
                    "rankwise",
                    "compare",
                    "--tasks",
                    "movies",
                    "--methods",
                    *METHODS,
                ]
                command += [
                    "--limit-train",
                    str(rows),
                    "--warmup",
                    str(warm_up),
                    "--schedule",
                    "linear",
                    "--seeds",
                    str(SEEDS),
                ]
                subprocess.run([*command, "--jobs", "2", "--threads", "1", "--out", str(out)], check=True)
                for run in run_folders(out):
                    result = run.read_result()
                    found.append({key: result[key] for key in KEPT} | {"warmup": warm_up})
        pq.write_table(pa.Table.from_pylist(found), STORED)
    show()


def show() -> None:
    """Markdown: mean score by rows, method and warm-up, and what the longer warm-up changes by seed."""
    stored = pq.read_table(STORED).to_pylist()
    print(f"| rows | method | {' | '.join(f'{w:.0%} warm-up' for w in WARM_UPS)} | difference by seed |")
    print(f"|---:|---|{'---:|' * len(WARM_UPS)}---:|")
    for rows in ROWS:
        for method in METHODS:
            short, long = (
                {
                    row["seed"]: 100 * row["score"]
                    for row in stored
                    if (row["n_train"], row["method"], row["warmup"]) == (rows, method, warm_up)
                }
                for warm_up in WARM_UPS
            )
            means = (f"{statistics.fmean(scores.values()):.2f}" for scores in (short, long))
            print(
                f"| {rows} | {method} | {' | '.join(means)} | {', '.join(f'{long[s] - short[s]:+.2f}' for s in long)} |"
            )


if __name__ == "__main__":
    main()
