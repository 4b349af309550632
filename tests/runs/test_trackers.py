"""What a tracker reads back is what the run logged; the others in their own offline modes, where they are installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rankwise.cli import main
from rankwise.config import RunConfig, TrainOptions
from rankwise.config_json import to_json
from rankwise.errors import RankwiseError
from rankwise.run_folder import RunFolder
from rankwise.runs import trackers
from rankwise.runs.trackers import TRACKERS, Board
from tiny import model_folder, reviews, sst2_folder

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def board(folder: Path, *names: str, step: int = 0, emit=print) -> Board:
    """The curves of a run in that folder; TensorBoard's without names."""
    run = RunFolder(folder)
    if not step:
        run.write_request(to_json(RunConfig(train=TrainOptions(epochs=2.0))))
    return Board(emit, names or ("tensorboard",), run, step)


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
        main([*command, "--evaluate-every", "4", "--dtype", "float32", "--report-to", "tensorboard"])
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
    first = board(tmp_path)
    for step in (1, 2, 3):
        first.step({"step": step, "loss": float(step)})
    first.close(3, {})
    again = board(tmp_path, step=1)
    for step in (2, 3):
        again.step({"step": step, "loss": 10.0 * step})
    again.close(3, {})
    assert curves(tmp_path)["train/loss"] == [(1, 1.0), (2, 20.0), (3, 30.0)]


def test_a_missing_package_is_named_before_anything_starts(tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name)
    )
    with pytest.raises(RankwiseError, match=r"pip install tensorboard"):
        trackers.check(["tensorboard"])
    with pytest.raises(RankwiseError, match=r"knows no 'wand'. Did you mean 'wandb'"):
        trackers.check(["wand"])
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--report-to", "tensorboard", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "needs the package tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_grid_asks_each_of_its_runs_for_it(tmp_path):
    sst2_folder(tmp_path / "glue", 24, 12)
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
        main([*command, "--report-to", "tensorboard", "--out", str(tmp_path / "out")])
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
    run = board(tmp_path, emit=told.append)
    for step in (1, 2, 3):
        run.step({"step": step, "loss": float(step), "grad_norm": None})
    run.close(3, {})
    assert [event["event"] for event in told] == ["note"]
    assert told[0]["text"].startswith("The curves for TensorBoard couldn't be written. ")
    assert "No space left on device" in told[0]["text"]


# ── The others, offline ───────────────────────────────────────────────────────────────────────────

LOSSES = {1: 3.0, 2: 2.0, 3: 1.0}


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Path:
    """Where each tracker keeps what it is told, without a network."""
    store = tmp_path / "store"
    for name, value in {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "TRACKIO_DIR": str(store),
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return store


def log(folder: Path, name: str) -> None:
    """A run that was interrupted after its second step, and continued from the first."""
    told = []
    first = board(folder, name, emit=told.append)
    for step in (1, 2):
        first.step({"step": step, "loss": LOSSES[step], "lr": 0.1})
    first.close(2, {})
    again = board(folder, name, step=2, emit=told.append)
    again.step({"step": 3, "loss": LOSSES[3], "lr": 0.1})
    again.close(3, {"validation": {"accuracy": 0.5}})
    assert told == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_mlflow_keeps_one_run_with_its_settings(offline, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow isn't installed")
    pytest.importorskip("sqlalchemy", reason="mlflow's store needs sqlalchemy, which isn't installed")
    log(tmp_path / "run", "mlflow")
    (run,) = mlflow.search_runs(experiment_names=["rankwise"], output_format="list")
    assert run.info.run_name == "run"
    assert run.data.params["epochs"] == "2.0"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    assert {point.step: point.value for point in history} == LOSSES
    assert run.data.metrics["final validation/accuracy"] == 0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_keeps_a_run_offline(offline, tmp_path):
    pytest.importorskip("wandb", reason="wandb isn't installed")
    log(tmp_path / "run", "wandb")
    files = [*(tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")]
    assert files
    ids = {file.stem for file in files}
    assert len(ids) == 1  # the continued run is the same one
    assert sum(file.stat().st_size for file in files) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_trackio_keeps_a_run_on_this_machine(offline, tmp_path):
    pytest.importorskip("trackio", reason="trackio isn't installed")
    code = (
        "import sys; sys.path[:0] = sys.argv[3:]; from pathlib import Path; from test_trackers import log; "
        "log(Path(sys.argv[1]), 'trackio'); import trackio; (run,) = trackio.Api().runs('rankwise'); "
        "from trackio.sqlite_storage import SQLiteStorage; rows = SQLiteStorage.get_logs('rankwise', run.name, run_id=run.id); "
        "print([(row['step'], row['train/loss']) for row in rows if 'train/loss' in row])"
    )
    here = Path(__file__).parent
    paths = [tmp_path / "run", "--", here, here.parent]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(list(LOSSES.items())) in done.stdout


@pytest.mark.parametrize("name", sorted(TRACKERS))
@pytest.mark.parametrize("at", ["open", "log", "close"])
def test_a_tracker_never_ends_a_run(name, at, tmp_path, monkeypatch):
    class Broken:
        def __init__(self, start):
            self.act("open")

        def act(self, what):
            if what == at:
                raise SystemExit("no such project") if name == "wandb" else ConnectionError("no such host")

        def log(self, values, step):
            self.act("log")

        def close(self):
            self.act("close")

    monkeypatch.setitem(TRACKERS, name, trackers.Tracker("It", "it", Broken))
    told = []
    run = board(tmp_path, name, emit=told.append)
    for step in (1, 2):
        run.step({"step": step, "loss": 1.0})
    run.close(2, {})
    (event,) = told
    assert event["text"].startswith("The curves for It couldn't be written.")
    assert "no such" in event["text"]
