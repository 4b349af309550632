"""Adaptive rank on the tables that people have: 600 to 5,000 rows, a rare class, some labels wrong.

    python studies/small_tables.py --data ../shared/data/glue      # runs what is missing, stores, prints
    python studies/small_tables.py --show                          # prints what is stored

A table is drawn from a task's training rows (movies: from all of its rows), and 2,000 others of the same classes are judged on:

    balanced   all classes alike          rare 10 %, rare 1 %   one class has that share (another one for each seed)
    dirty      balanced, and 2 % of the labels that are trained on are another class

Methods have the recipe's rates: adaptive, rank 8 on query and value, rank 8 in all linear layers, the head alone. Stored as
studies/small_tables.parquet, a row a run.
"""

import argparse
import statistics
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rankwise.run_folder import RunFolder
from rankwise.tasks import registry
from rankwise.tasks.encoding import Rows
from rankwise.tasks.labels import Labels
from rankwise.tasks.load import load_split
from rankwise.tasks.metrics import scores
from trials import Row, run_missing, trial

STORED = Path(__file__).with_suffix(".parquet")
TASKS, ROWS, SEEDS, JUDGED = ("qqp", "mnli", "sst2", "movies"), (600, 1_200, 2_500, 5_000), (0, 1, 2), 2_000
KINDS = {"balanced": None, "rare 10 %": 0.1, "rare 1 %": 0.01, "dirty": None}
"""Share of the rare class."""
WRONG = 0.02
FIXED = ("lora", "lora:targets=all-linear,lr=1e-3")
METHODS = ("adaptive", *FIXED, "head")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one sub-folder of Parquet files a task")
    parser.add_argument("--work", type=Path, default=Path("runs/small_tables"), help="where runs are kept")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, with one thread each")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS, help="some of the sizes")
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="some of the tasks")
    parser.add_argument("--kinds", nargs="*", default=tuple(KINDS), help="some of the kinds")
    parser.add_argument("--methods", nargs="*", default=METHODS, help="some of the methods")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, help="seeds")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    if not asked.show:
        wanted: list[Row] = [
            {"task": task, "rows": rows, "kind": kind, "seed": seed, "method": method}
            for seed, rows, kind, task, method in product(
                asked.seeds, asked.rows, asked.kinds, asked.tasks, asked.methods
            )
        ]
        run_missing(STORED, wanted, partial(_trial, asked.data, asked.work), asked.jobs)
    show(pq.read_table(STORED).to_pylist())


def _trial(data: Path | None, work: Path, which: Row) -> Row:
    name = (
        f"{which['task']}-{which['rows']}-{which['kind'].replace(' ', '').replace('%', '')}-{which['seed']}"
    )
    folder = work / name / which["method"].replace(":", "_").replace(",", "_")
    draw(data, folder, which)
    out = folder / "run"
    found = trial(out, which["task"], which["method"], {"seed": which["seed"]})
    table = RunFolder(out).read_predictions()
    labels, said = np.array(table["label"].to_pylist()), np.array(table["logits"].to_pylist()).argmax(axis=1)
    return (
        which
        | found
        | scores(["macro_f1"], labels, said, problem="classification", fitting=("macro_f1",))
        | {"most_common": float(np.bincount(labels).max() / len(labels))}
    )


def draw(data: Path | None, folder: Path, which: Row) -> None:
    """Write a table and the rows it is judged on; which they are depends on the task, the kind, the rows and the seed."""
    all_rows = _all(which["task"], data)
    all_labels = _labels(all_rows)
    seed, classes = which["seed"], int(all_labels.max()) + 1
    generator = np.random.default_rng([seed, which["rows"], list(KINDS).index(which["kind"])])
    shares = np.full(classes, 1 / classes)
    if rare := KINDS[which["kind"]]:
        shares[:] = (1 - rare) / (classes - 1)
        shares[seed % classes] = rare
    of_class = [generator.permutation(np.flatnonzero(all_labels == c)) for c in range(classes)]
    judged = min(
        JUDGED, *(int(len(of) / share) - which["rows"] for of, share in zip(of_class, shares, strict=True))
    )
    trained, left = [], []
    for of, share in zip(of_class, shares, strict=True):
        most = round(share * which["rows"])
        trained.append(of[:most])
        left.append(of[most:][: round(share * judged)])
    rows, others = (all_rows.select(generator.permutation(np.concatenate(part))) for part in (trained, left))
    labels = _labels(rows).copy()
    if which["kind"] == "dirty":
        wrong = generator.choice(len(labels), round(WRONG * len(labels)), replace=False)
        labels[wrong] = (labels[wrong] + generator.integers(1, classes, len(wrong))) % classes
    folder.mkdir(parents=True, exist_ok=True)
    for name, part, said in (("train", rows, labels), ("held_out", others, others.labels)):
        pair = {"text_pair": part.text_pair} if part.text_pair else {}
        pq.write_table(pa.table({"text": part.text, "label": said} | pair), folder / f"{name}.parquet")


def _all(task: str, data: Path | None) -> Rows:
    splits = ("train", "validation") if task == "movies" else ("train",)
    parts = [load_split(registry.named(task), split, data)[0] for split in splits]
    text = [one for part in parts for one in part.text]
    pair = [one for part in parts for one in part.text_pair or []] or None
    labels = np.concatenate([_labels(part) for part in parts])
    return Rows(text, pair, labels, np.arange(len(text), dtype=np.int64))


def _labels(rows: Rows) -> Labels:
    assert rows.labels is not None
    return rows.labels


def show(rows: list[Row]) -> None:
    """Markdown: what adaptive has over each fixed rank by rows, kind and task; its worst runs; runs without a component."""
    by = {(r["task"], r["rows"], r["kind"], r["seed"], r["method"]): r for r in rows}
    tables = sorted({key[:-1] for key in by if all((*key[:-1], m) in by for m in ("adaptive", *FIXED))})
    if not tables:
        return
    print(
        "| tables | n | accuracy − better rank 8 | macro-F1 − better rank 8 | accuracy: "
        + ", ".join(METHODS)
        + " | size |"
    )
    print("|---|---:|---:|---:|---|---:|")
    groups = {"all": tables}
    for place, values in ((1, ROWS), (2, KINDS), (0, TASKS)):
        groups |= {f"{v}": [t for t in tables if t[place] == v] for v in values}
    for name, group in ((name, group) for name, group in groups.items() if group):
        means = {
            (metric, method): 100
            * statistics.fmean(by[*t, method][metric] for t in group if (*t, method) in by)
            for metric, method in product(("accuracy", "macro_f1"), METHODS)
            if any((*t, method) in by for t in group)
        }
        over = [means[m, "adaptive"] - max(means[m, f] for f in FIXED) for m in ("accuracy", "macro_f1")]
        size = statistics.median(
            by[*t, "adaptive"]["adapter_params"] / by[*t, FIXED[1]]["adapter_params"] for t in group
        )
        each = ", ".join(f"{means['accuracy', m]:.2f}" for m in METHODS if ("accuracy", m) in means)
        print(f"| {name} | {len(group)} | {over[0]:+.2f} | {over[1]:+.2f} | {each} | {100 * size:.0f} % |")
    print(
        "\nBelow rank 8 on query and value by more than 3 points, or two standard errors of the judged rows:\n"
    )
    worst = 0
    for t in tables:
        adaptive, fixed = by[*t, "adaptive"], by[*t, FIXED[0]]
        p, n = fixed["accuracy"], fixed["n_held_out"]
        behind, error = p - adaptive["accuracy"], (p * (1 - p) / n) ** 0.5
        if behind > max(0.03, 2 * error):
            worst += 1
            print(f"- {t}: {100 * behind:.2f} points ({adaptive['components']} components)")
    print(f"{worst} of {len(tables)} runs.")
    removed = [t for t in tables if not by[*t, "adaptive"]["components"]]
    print(f"Without a component: {len(removed)} of {len(tables)} runs. {removed}")


if __name__ == "__main__":
    main()
