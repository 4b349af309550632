"""Small tables on disk, and what a run reads from them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rankwise.config import RunConfig, TableOptions
from rankwise.tasks.load import load_dataset
from rankwise.tasks.splits import Dataset
from rankwise.tasks.task import Task


def write(path: Path, lines: str) -> Path:
    path.write_text(lines, encoding="utf-8")
    return path


def load_table(*paths: Path, **options) -> Dataset:
    return load_dataset(RunConfig(table=TableOptions(train_file=paths, **options)))


def jsonl(path: Path, labels: list) -> Path:
    rows = [{"text": f"review {i}", "label": label} for i, label in enumerate(labels)]
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def labels_by_row(dataset: Dataset) -> dict[int, object]:
    splits = (dataset.train, dataset.validation["validation"])
    return {int(i): label.tolist() for rows in splits for i, label in zip(rows.idx, rows.labels, strict=True)}


def reviews(n: int, labels=("bad", "good")) -> str:
    return "text,label\n" + "".join(f"review {i},{labels[i % len(labels)]}\n" for i in range(n))


def label_of(task: Task, i: int) -> float:
    return 0.75 * i if task.problem == "regression" else i % len(task.label_names)


def glue_folder(folder: Path, task: Task, **splits: int) -> Path:
    """Parquet files with the task's columns: so many rows a split."""
    (folder / task.name).mkdir(parents=True)
    for split, n in splits.items():
        columns = {
            "label": [label_of(task, i) for i in range(n)],
            "idx": [i + 1000 for i in range(n)],
        }
        columns |= {
            name: [f"{split} {name} {i}" for i in range(n)] for name in (task.text, task.text_pair) if name
        }
        pq.write_table(pa.table(columns), folder / task.name / f"{split}.parquet")
    return folder
