"""Damaged tables: CSV, TSV, JSONL, Parquet, and what `save_to_disk` wrote."""

import csv
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from faults import damage
from faults.harness import faults

pytestmark = pytest.mark.slow

ROWS: list[dict[str, Any]] = [{"text": f"a film, {i}", "label": ("bad", "good")[i % 2]} for i in range(40)]
CELLS = (
    *damage.VALUES,
    'a "quoted" word',
    '"',
    '"open',
    "a\tb",
    "a\r\nb",
    "NA",
    "1e3",
    "007",
    "\ud800",
    "\u2028",
    "\0",
)


def rows(rng: random.Random) -> list[dict[str, Any]]:
    """Rows of which some hold other values, have other columns, or are there twice; or whose label is another kind of value."""
    made = [dict(row) for row in ROWS]
    kind = rng.choice(
        (None, [0, 1], [0.5, 1.5], [True, False], [["a"], ["a", "b"]], [[0, 1], [1, 0]], ["1e3", "7"])
    )
    for i, row in enumerate(made) if kind else ():
        row["label"] = kind[i % 2]
    for _ in range(rng.randrange(4)):
        row = rng.choice(made)
        column = rng.choice(("text", "label", "x"))
        row[column] = rng.choice(CELLS)
    return made


def delimited(rng: random.Random, folder: Path) -> Path:
    suffix = rng.choice(("csv", "tsv"))
    path = folder / f"t.{suffix}"
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE))
        separator = "\t" if suffix == "tsv" else rng.choice(",;")
        writer = csv.writer(
            file,
            delimiter=separator,
            quoting=quoting,
            quotechar=None if quoting == csv.QUOTE_NONE else '"',
            escapechar="\\",
        )
        writer.writerow(("text", "label"))
        writer.writerows([row["text"], row["label"]] for row in rows(rng))
    if rng.random() < 0.7:
        damage.file_bytes(rng, path)
    return path


def json_lines(rng: random.Random, folder: Path) -> Path:
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(rng)))
    if rng.random() < 0.7:
        damage.json_lines(rng, path)
    return path


def parquet(rng: random.Random, folder: Path) -> Path:
    path = folder / "t.parquet"
    try:
        table = pa.Table.from_pylist(rows(rng))
    except (pa.ArrowException, ValueError, OverflowError):  # values of several types
        table = pa.Table.from_pylist(ROWS)
    if rng.random() < 0.3:
        kind = rng.choice(
            (
                pa.timestamp("s"),
                pa.date32(),
                pa.decimal128(20, 3),
                pa.list_(pa.int8()),
                pa.binary(),
                pa.map_(pa.int8(), pa.int8()),
                pa.float16(),
            )
        )
        column = rng.choice(("text", "label"))
        table = table.drop_columns([column]).append_column(column, pa.nulls(len(table), kind))
    pq.write_table(table, path, compression=rng.choice(("none", "snappy", "zstd")))
    if rng.random() < 0.7:
        damage.file_bytes(rng, path)
    return path


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    one = datasets.Dataset.from_list(
        [{**row, "label": i % 2} for i, row in enumerate(ROWS)], features=features
    )
    folder = tmp_path_factory.mktemp("saved")
    one.save_to_disk(folder / "one")
    datasets.DatasetDict(train=one, validation=one.select(range(8))).save_to_disk(folder / "splits")
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A folder that is taken for a model until it is loaded, which comes after the rows are read."""
    folder = tmp_path_factory.mktemp("no-model")
    (folder / "config.json").write_text("{}")
    return folder


def a_data_set(saved: Path) -> Callable[[random.Random, Path], Path]:
    def make(rng: random.Random, folder: Path) -> Path:
        path = folder / "saved"
        shutil.copytree(saved / rng.choice(("one", "splits")), path)
        for _ in range(rng.randint(1, 2)):
            file = rng.choice(sorted(one for one in path.rglob("*") if one.is_file()))
            try:
                (damage.json_file if file.suffix == ".json" else damage.file_bytes)(rng, file)
            except ValueError:  # damaged before
                file.write_bytes(b"")
        return path

    return make


@pytest.mark.parametrize("kind", ["delimited", "jsonl", "parquet", "saved"])
def test_a_damaged_table_is_read_or_refused_in_a_sentence(tmp_path, model, saved, kind):
    readers = {"delimited": delimited, "jsonl": json_lines, "parquet": parquet, "saved": a_data_set(saved)}

    def make(rng: random.Random, folder: Path) -> list[object]:
        table = readers[kind](rng, folder)
        options = ["--validation", table] if rng.random() < 0.1 else []
        options += (
            ["--problem", rng.choice(("classification", "multi-label", "regression"))]
            if rng.random() < 0.3
            else []
        )
        return ["train", table, "--model", model, "--out", folder / "out", *options]

    assert faults(make, tmp_path) == []
