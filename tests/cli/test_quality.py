"""How good predictions are, and a threshold, through the commands on a real file."""

import contextlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import tiny
from rankwise.cli import main
from rankwise.report import collect
from rankwise.tasks.quality import from_json


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    tiny.model_folder(folder / "model")
    for name, n, seed in (("rows", 300, 0), ("more", 80, 5)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in tiny.reviews(n, seed))
        )
    return folder


@pytest.fixture(scope="module")
def trained(place) -> tuple[Path, str]:
    """The folder of a run with a threshold, and what it printed."""
    run, printed = place / "runs" / "one", place / "printed.txt"
    options = "--method lora --lr 5e-3 --dtype float32 --epochs 2 --threads 1 --threshold-for recall=0.9 --class positive"
    command = ["train", place / "rows.jsonl", "--model", place / "model", "--out", run, *options.split()]
    with printed.open("w") as out, contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in command])
    assert not stopped.value.code
    return run, printed.read_text()


def call(capfd, *arguments: object) -> tuple[int, str, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return int(stopped.value.code or 0), out, err


def test_a_run_says_how_good_it_is_and_predict_uses_its_threshold(place, trained, capfd):
    run, out = trained
    assert "(95 % over rows: " in out
    assert "; always '" in out
    assert "expected calibration error" in out
    assert "→ negative" in out
    assert "Threshold stored, which predict uses: positive from probability" in out
    result = json.loads((run / "result.json").read_text())
    assert result["quality"]["scores"]["accuracy"] == result["score"]

    stored = json.loads((run / "threshold.json").read_text())
    code, _, _ = call(capfd, "predict", run, place / "more.jsonl", "--out", place / "scored.parquet")
    assert code == 0
    rows = pq.read_table(place / "scored.parquet").to_pylist()
    assert all(
        (row["probability_positive"] >= stored["probability"]) == (row["label"] == "positive") for row in rows
    )

    call(capfd, "evaluate", run, place / "more.jsonl", "--threshold-for", "recall=0.2", "--class", "positive")
    assert json.loads((run / "threshold.json").read_text())["probability"] > stored["probability"]
    (quality,) = collect(run.parent).qualities.values()
    assert quality == from_json(result["quality"])


def test_evaluate_for_a_script_has_quality_and_threshold(trained, told):
    run, _ = trained
    found = told("evaluate", run)
    result = json.loads((run / "result.json").read_text())
    assert found["quality"] == result["quality"]
    assert found["threshold"]["name"] == "positive"
    assert {"precision", "recall", "accuracy"} == set(found["threshold"]["here"])


def test_a_threshold_that_makes_no_sense_is_refused_before_training(place, trained, capfd):
    start = ["train", place / "rows.jsonl", "--model", place / "model", "--out", place / "other"]
    code, _, err = call(capfd, *start, "--threshold-for", "precision=0.9")
    assert (code, err.count("\n")) == (2, 1)
    assert "--threshold-for and --class go together" in err
    code, _, err = call(capfd, *start, "--threshold-for", "f1=0.9", "--class", "positive")
    assert "--threshold-for takes precision or recall" in err
    assert not (place / "other").exists()
    code, _, err = call(capfd, "evaluate", trained[0], "--threshold-for", "recall=0.9", "--class", "Positive")
    assert "no class 'Positive'. Did you mean 'positive'" in err


def test_a_damaged_threshold_is_refused(place, trained, capfd):
    run, _ = trained
    kept = (run / "threshold.json").read_text()
    try:
        (run / "threshold.json").write_text('{"name": "positive"}')
        code, _, err = call(capfd, "predict", run, place / "more.jsonl", "--out", place / "scored.jsonl")
        assert code == 2
        assert "threshold.json is damaged" in err
        assert "Remove this file; predictions then go by the highest probability." in err
    finally:
        (run / "threshold.json").write_text(kept)
