"""What TensorBoard reads back is what the run logged."""

import importlib.util
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankwise.cli import main
from rankwise.errors import RankwiseError
from rankwise.run_folder import RunFolder
from rankwise.runs import tensorboard
from rankwise.runs.tensorboard import Board
from tiny import model_folder, reviews

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def curves(folder) -> dict[str, list[tuple[int, float]]]:
    """Every tag's steps and values, as TensorBoard sees them."""
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_trained_runs_curves_are_its_log(tmp_path):
    rows = reviews(48)
    file = tmp_path / "reviews.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out, model = tmp_path / "out", model_folder(tmp_path / "model")
    command = [
        "train",
        str(file),
        "--out",
        str(out),
        "--model",
        str(model),
        "--epochs",
        "2",
        "--batch-size",
        "8",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--evaluate-every", "4", "--dtype", "float32", "--tensorboard"])
    assert ended.value.code == 0
    run = RunFolder(out)
    steps, found = run.read_steps(), curves(out)
    for name in ("loss", "lr", "grad_norm"):
        assert found[f"train/{name}"] == [
            (line["step"], pytest.approx(line[name], rel=1e-6)) for line in steps
        ]
    scored = [line for line in steps if "validation" in line]
    assert len(scored) > 0
    assert found["validation/accuracy"] == [
        (s["step"], pytest.approx(s["validation"]["accuracy"])) for s in scored
    ]
    result = run.read_result()
    assert found["final validation/accuracy"] == [(result["steps"], pytest.approx(result["score"]))]


def test_without_the_option_nothing_is_written(tmp_path):
    nothing = Board(print)
    nothing.step({"step": 1, "loss": 0.5})
    nothing.close(1, {"validation": {"accuracy": 1.0}})
    assert list(tmp_path.iterdir()) == []


def test_what_an_interrupted_run_wrote_past_its_checkpoint_is_taken_back(tmp_path):
    first = Board(print, tmp_path)
    for step in (1, 2, 3):
        first.step({"step": step, "loss": float(step)})
    first.close(3, {})
    again = Board(print, tmp_path, step=1)
    for step in (2, 3):
        again.step({"step": step, "loss": 10.0 * step})
    again.close(3, {})
    assert curves(tmp_path)["train/loss"] == [(1, 1.0), (2, 20.0), (3, 30.0)]


def test_a_missing_package_is_named_before_anything_starts(tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name)
    )
    with pytest.raises(RankwiseError, match=r"pip install 'rankwise\[tensorboard\]'"):
        tensorboard.check()
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--tensorboard", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "needs the package tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_grid_asks_each_of_its_runs_for_it(tmp_path):
    (tmp_path / "glue" / "sst2").mkdir(parents=True)
    for split, n in (("train", 24), ("validation", 12)):
        rows = reviews(n)
        columns = {
            "sentence": [r["text"] for r in rows],
            "label": [int(r["label"] == "positive") for r in rows],
        }
        pq.write_table(pa.table(columns), tmp_path / "glue" / "sst2" / f"{split}.parquet")
    command = [
        "compare",
        "--tasks",
        "sst2",
        "--data",
        str(tmp_path / "glue"),
        "--methods",
        "lora",
        "--seeds",
        "1",
    ]
    command += ["--model", str(model_folder(tmp_path / "model")), "--epochs", "1", "--dtype", "float32"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--tensorboard", "--out", str(tmp_path / "out")])
    assert ended.value.code == 0
    assert "train/loss" in curves(tmp_path / "out" / "sst2.lora.s0")


@pytest.mark.parametrize("at", ["start", "step", "end"])
def test_curves_that_cannot_be_written_are_reported_once_and_end_nothing(tmp_path, at, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    name = {"start": "__init__", "step": "add_scalar", "end": "close"}[at]
    monkeypatch.setattr(SummaryWriter, name, full)
    told = []
    board = Board(told.append, tmp_path)
    for step in (1, 2, 3):
        board.step({"step": step, "loss": float(step), "grad_norm": None})
    board.close(3, {})
    assert [event["event"] for event in told] == ["note"]
    assert told[0]["text"].startswith("The curves for TensorBoard couldn't be written. ")
    assert "No space left on device" in told[0]["text"]
