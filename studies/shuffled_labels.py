"""Does adaptive rank find nothing where there is nothing? Training rows get each other's labels; the rows they are judged on keep theirs.

    python studies/shuffled_labels.py --data ../shared/data/glue   # runs what is missing, stores, prints
    python studies/shuffled_labels.py --show                       # prints what is stored

Rows are those of studies/trials.py. Stored as studies/shuffled_labels.parquet, a row a trial.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rankwise.run_folder import RunFolder
from trials import Row, earlier, run_missing, split, trial

STORED = Path(__file__).with_suffix(".parquet")
TASKS, SEEDS = ("movies", "mrpc", "sst2"), (0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one sub-folder of Parquet files a task")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/shuffled-labels"), help="where trials are kept"
    )
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="some of the tasks")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, with one thread each")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    parser.add_argument(
        "--earlier", action="store_true", help="print what earlier versions gave, run nothing"
    )
    asked = parser.parse_args()
    asked.show |= asked.earlier
    if not asked.show:
        wanted = [{"task": task, "seed": seed} for seed in SEEDS for task in asked.tasks]
        for task in asked.tasks:
            split(task, asked.data, asked.work)
        run_missing(STORED, wanted, partial(_trial, asked.work), asked.jobs)
    stored = earlier(STORED) if asked.earlier else STORED
    for row in sorted(pq.read_table(stored).to_pylist(), key=lambda row: (row["task"], row["seed"])):
        print(
            f"{row['task']:7} seed {row['seed']}  accuracy {100 * row['accuracy']:.1f}  {row['components']} components, "
            f"{row['adapter_params']:,} parameters"
        )
        print(*(f"    {text}" for text in row["decisions"]), sep="\n")


def _trial(work: Path, which: Row) -> Row:
    folder = work / f"{which['task']}-s{which['seed']}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = pq.read_table(work / which["task"] / "train.parquet")
    shuffled = np.random.default_rng(which["seed"]).permutation(len(rows))
    labels = rows["label"].take(pa.array(shuffled))
    pq.write_table(
        rows.set_column(rows.schema.get_field_index("label"), "label", labels), folder / "train.parquet"
    )
    (folder / "held_out.parquet").write_bytes((work / which["task"] / "held_out.parquet").read_bytes())
    out = folder / "run"
    measured = trial(out, which["task"], "adaptive", {"seed": which["seed"]})
    return which | measured | {"decisions": [decision["text"] for decision in RunFolder(out).read_ranks()]}


if __name__ == "__main__":
    main()
