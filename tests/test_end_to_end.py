"""The whole program on the embedded model and data, as a person runs it: compare, the same again, then the adapter put to use."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rankwise.cli import main

pytestmark = pytest.mark.slow

GRID = ["--tasks", "movies", "--methods", "full", "lora", "--seeds", "1", "--epochs", "1"]
LIMITS = ["--limit-train", "400", "--limit-eval", "200"]
RUNS = ["movies.full.s0", "movies.lora.s0"]


def compare(out: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rankwise", "compare", *GRID, *LIMITS, "--out", str(out)]
    environment = dict(os.environ, COLUMNS="200")
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("grid") / "runs"


@pytest.fixture(scope="module")
def first(out) -> subprocess.CompletedProcess:
    return compare(out)


@pytest.fixture
def answer(told, first, tmp_path, monkeypatch):
    """Runs a command with --json in this process, in an empty folder, and returns its object."""
    monkeypatch.chdir(tmp_path)
    return told


def results(out: Path) -> dict[str, dict]:
    return {name: json.loads((out / name / "result.json").read_text()) for name in RUNS}


def test_a_comparison_ends_with_a_table_a_report_and_every_runs_figures(first, out):
    assert first.returncode == 0, first.stderr
    found = results(out)
    for name, run in found.items():
        assert (run["n_train"], run["n_validation"], run["steps"]) == (400, 200, 13)
        assert f"{name}: accuracy {run['score']:.4f}" in first.stdout
    page = (out / "report.md").read_text()
    for method in ("full", "lora"):
        score = f"{100 * found[f'movies.{method}.s0']['score']:.1f}"
        shown = f"{found[f'movies.{method}.s0']['score']:.3f}"
        for text in (first.stdout, page):
            assert any(method in line and (score in line or shown in line) for line in text.splitlines())
    table = pq.read_table(out / "results.parquet").to_pylist()
    assert {(row["method"], row["score"]) for row in table} == {
        (r["method"], r["score"]) for r in found.values()
    }
    assert found["movies.lora.s0"]["trainable_params"] < 0.02 * found["movies.full.s0"]["trainable_params"]
    assert "\x1b" not in first.stdout + first.stderr


def test_the_same_command_again_trains_nothing_and_shows_the_same_table(first, out):
    def files() -> dict[str, int]:
        return {name: (out / name / "result.json").stat().st_mtime_ns for name in RUNS}

    before, page = files(), (out / "report.md").read_text()
    again = compare(out)
    assert again.returncode == 0, again.stderr
    assert files() == before
    assert (out / "report.md").read_text() == page
    assert all(f"{name}: accuracy" in again.stdout for name in RUNS)
    assert again.stdout.count("finished before") == 2
    assert "step " not in again.stdout


def test_a_changed_setting_is_refused_with_the_difference(first, out, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *GRID, "--limit-train", "401", "--limit-eval", "200", "--out", str(out)])
    assert stopped.value.code == 2
    assert "data.limit_train: 400 there, 401 now" in capfd.readouterr().err


def test_a_loaded_and_a_merged_adapter_predict_as_the_run_did(answer, out):
    run = results(out)["movies.lora.s0"]
    adapter = out / "movies.lora.s0"
    own = answer("evaluate", adapter)
    assert (own["n"], own["accuracy"]) == (200, pytest.approx(run["score"], abs=0.005))
    rows = ["A moving, funny and beautifully acted film.", "A dull mess without a single idea."]
    Path("new.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    answer("predict", adapter, "new.jsonl", "--out", "scored.jsonl")
    scored = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
    assert [set(row) for row in scored] == [
        {
            *("text", "reason", "label"),
            *("probability_negative", "probability_positive", "logit_negative", "logit_positive"),
        }
    ] * 2
    answer("merge", adapter, "--out", "merged")
    answer("predict", "merged", "new.jsonl", "--out", "again.csv")
    with Path("again.csv").open(newline="") as file:
        merged = [float(row["probability_positive"]) for row in csv.DictReader(file)]
    assert merged == pytest.approx([row["probability_positive"] for row in scored], abs=0.01)


def test_a_whole_model_that_was_not_kept_says_how_to_keep_it(first, out, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(out / "movies.full.s0")])
    assert stopped.value.code == 2
    assert "--keep-models" in capfd.readouterr().err


def test_a_grids_folder_names_the_runs_in_it(first, out, capfd):
    with pytest.raises(SystemExit):
        main(["evaluate", str(out)])
    assert str(out / "movies.lora.s0") in capfd.readouterr().err
