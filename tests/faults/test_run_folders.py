"""Damaged run folders: a report and a comparison name what they can't read, and go on with the rest."""

import json
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tiny
from faults import damage
from faults.harness import Commands, faults
from planted import decide, finished
from planted_report import PRUNED, REJECTED, START
from rankwise.config import ModelOptions
from rankwise.config_json import to_json
from rankwise.run_folder import RunFolder, run_name, write_grid
from rankwise.runs.config import CompareConfig

pytestmark = pytest.mark.slow

METHODS, SEEDS = ("full", "lora"), 2


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    """Four finished runs as a grid leaves them, with logs and rank decisions."""
    out = tmp_path_factory.mktemp("grid") / "runs"
    model = tiny.model_folder(tmp_path_factory.mktemp("model"))
    config = CompareConfig(
        tasks=("sst2",), methods=METHODS, seeds=SEEDS, out=out, model=ModelOptions(model=str(model))
    )
    memory = {"total": 3.0, "weights": 1.0, "batch": 2.0}
    for run in config.runs():
        folder = finished(
            out, run.task, run.method, run.seed, wrong=range(run.seed + 2), steps=1000, peak_memory_mb=memory
        )
        folder.update_run_json(requested=to_json(run))
        folder.append_steps(
            [
                {"step": s, "loss": 1 / s, "validation": {"accuracy": 0.5}, "memory": memory}
                for s in range(1, 9)
            ]
        )
        if run.method == "lora":
            decide(folder, START, PRUNED, REJECTED)
    write_grid(out, to_json(config) | {"command": "rankwise compare"})
    return out


def predictions(rng: random.Random, file: Path) -> None:
    """Damage a table of predictions, or the file's bytes."""
    if rng.random() < 0.5:
        damage.file_bytes(rng, file)
        return
    columns = dict(
        zip(*(lambda table: (table.column_names, table.columns))(pq.read_table(file)), strict=True)
    )
    n = len(columns["idx"])
    name = rng.choice([*columns])
    odd = [
        None,
        pa.array([None] * n),
        pa.array([float("nan")] * n, pa.float32()),
        pa.array([1e38] * n, pa.float32()),
        pa.array(["x"] * n),
        pa.array([[1.0]] * n, pa.list_(pa.float32())),
        pa.array([[1.0] * (i % 3) for i in range(n)], pa.list_(pa.float32())),
        pa.array([[None, 1.0]] * n, pa.list_(pa.float32())),
        pa.array([[[1]]] * n),
        pa.array([{"x": 1}] * n),
        pa.array(rng.choices([-(2**63), -1, 0, 1, 2**63 - 1], k=n)),
        pa.array([2**64 - 1] * n, pa.uint64()),
        pa.array([True] * n),
        pa.array([b"\\xff"] * n),
        pa.array(["x"] * n).dictionary_encode(),
    ][rng.randrange(15)]
    if odd is None:
        del columns[name]
    else:
        columns[name] = odd
        if name == "label" and rng.random() < 0.5:
            columns["prediction"] = odd
    table = pa.table(columns)
    pq.write_table(table.slice(0, rng.choice((0, 1, n, n, n))) if rng.random() < 0.3 else table, file)


FILES = {
    "run.json": damage.json_file,
    "result.json": damage.json_file,
    "steps.jsonl": damage.json_lines,
    "ranks.jsonl": damage.json_lines,
    "predictions.parquet": predictions,
}


def damaged(rng: random.Random, grid: Path, place: Path) -> Path:
    """A copy of the grid in which one to three files are damaged, now and then a file of every run."""
    out = place / "runs"
    shutil.copytree(grid, out)
    for name in rng.sample([*FILES, "grid.json"], rng.randint(1, 3)):
        files = [out / name] if name == "grid.json" else sorted(out.glob(f"*/{name}"))
        for file in files if rng.random() < 0.1 else [rng.choice(files)]:
            FILES.get(name, damage.json_file)(rng, file)
    return out


def comparison(grid: Path, out: Path) -> list[object]:
    """The command that made the grid."""
    model = RunFolder(grid / run_name("sst2", "full", 0)).read_run()["requested"]["model"]["model"]
    return [
        "compare",
        "--tasks",
        "sst2",
        "--methods",
        *METHODS,
        "--seeds",
        SEEDS,
        "--model",
        model,
        "--out",
        out,
    ]


def test_whole_runs_are_reported_and_kept(grid, tmp_path):
    shutil.copytree(grid, tmp_path / "runs")
    commands = Commands()
    try:
        for command in (["report", tmp_path / "runs"], comparison(grid, tmp_path / "runs")):
            assert commands.run(command).code == 0
    finally:
        commands.close()


def test_a_report_of_damaged_runs(grid, tmp_path):
    assert faults(lambda rng, place: ["report", damaged(rng, grid, place)], tmp_path) == []


def test_a_comparison_over_damaged_runs(grid, tmp_path):
    assert faults(lambda rng, place: comparison(grid, damaged(rng, grid, place)), tmp_path) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a trained adapter, its table and its base."""
    here = tmp_path_factory.mktemp("trained")
    tiny.model_folder(here / "tiny-bert")
    lines = "".join(json.dumps(row) + "\n" for row in tiny.reviews(60))
    (here / "reviews.jsonl").write_text(lines, encoding="utf-8")
    commands = Commands()
    try:
        assert commands.run(training(here, here / "adapter")).fault is None
    finally:
        commands.close()
    text = {"text": "step 0: no sentence"}  # too little was trained for decisions of its own
    decide(RunFolder(here / "adapter"), START | text, PRUNED, REJECTED | text)
    return here


def training(here: Path, out: Path) -> list[object]:
    given = ["--epochs", "1", "--lr", "1e-3", "--model", here / "tiny-bert", "--out", out]
    return ["train", here / "reviews.jsonl", *given]


def test_commands_on_an_adapter_with_damaged_records(trained, tmp_path):
    def make(rng: random.Random, place: Path) -> list[object]:
        out = place / "adapter"
        shutil.copytree(trained / "adapter", out)
        for name in rng.sample(
            ["run.json", "result.json", "ranks.jsonl", "steps.jsonl", "predictions.parquet"],
            rng.randint(1, 2),
        ):
            FILES[name](rng, out / name)
        table = trained / "reviews.jsonl"
        return rng.choice(
            [
                ["inspect", out],
                ["evaluate", out, table],
                ["evaluate", out],
                ["predict", out, table, "--out", place / "scored.csv"],
                ["export", out, "--out", place / "exported"],
                training(trained, out),
            ]
        )

    assert faults(make, tmp_path) == []
