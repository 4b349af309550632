"""A run that was killed and is asked for again ends as if nothing had happened: scores, predictions and weights bit for bit."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from rankwise.config import DataOptions, LoraOptions, ModelOptions, RunConfig, TrainOptions
from rankwise.config_json import to_json
from rankwise.errors import RankwiseError
from rankwise.report import collect
from rankwise.run_folder import RunFolder
from rankwise.runs.run import execute
from tiny import model_folder, reviews

DISTURBED = Path(__file__).parents[1] / "disturbed.py"
ROWS, BATCH, EPOCHS = 60, 4, 2
STEPS = EPOCHS * ROWS // BATCH
TIMED = {"train_seconds", "samples_per_second", "tokens_per_second", "peak_rss_mb", "speed"}
"""What a result has that depends on the machine's mood."""


@pytest.fixture(scope="module")
def glue(tmp_path_factory) -> Path:
    """A folder with an `sst2` whose label is a word in the text."""
    folder = tmp_path_factory.mktemp("glue")
    (folder / "sst2").mkdir()
    for split, n, seed in (("train", ROWS, 0), ("validation", 30, 1)):
        rows = reviews(n, seed)
        columns = {
            "sentence": [row["text"] for row in rows],
            "label": [int(row["label"] == "positive") for row in rows],
            "idx": list(range(n)),
        }
        pq.write_table(pa.table(columns), folder / "sst2" / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """A cache of its own, and no hub."""
    return {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def tensors(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Every tensor saved in a run folder, as the bytes it is made of."""
    files = [*folder.glob("adapter_model.safetensors"), *folder.glob("model.safetensors")]
    assert len(files) == 1, f"{folder} holds {files}"
    return {name: (str(value.dtype), value.tobytes()) for name, value in load_file(files[0]).items()}


def untimed(folder: Path) -> tuple[dict, list[dict], pa.Table, dict]:
    """All that a run made, but for how long it took."""
    run = RunFolder(folder)
    result = {name: value for name, value in run.read_result().items() if name not in TIMED}
    steps = [{name: value for name, value in step.items() if name != "seconds"} for step in run.read_steps()]
    return result, steps, run.read_predictions(), tensors(folder)


def assert_same(folder: Path, undisturbed: Path, steps: int = STEPS):
    """Two runs made the same, and neither left anything behind."""
    result, log, predictions, weights = untimed(folder)
    expected = untimed(undisturbed)
    assert result == expected[0]
    assert log == expected[1]
    assert [line["step"] for line in log] == list(range(1, steps + 1))
    assert predictions.equals(expected[2])
    assert weights.keys() == expected[3].keys()
    assert [name for name in weights if weights[name] != expected[3][name]] == []
    for adapter in undisturbed.glob("adapter_*"):
        assert (folder / adapter.name).read_bytes() == adapter.read_bytes()
    assert sorted(path.name for path in folder.iterdir() if path.name != "log.txt") == sorted(
        path.name for path in undisturbed.iterdir() if path.name != "log.txt"
    )


# One run, killed at each moment at which it writes something

TRAIN = {"epochs": float(EPOCHS), "batch_size": BATCH, "lr": 3e-3}
SETTINGS: dict[str, dict] = {
    "lora packed": {"method": "lora"},
    "lora padded": {
        "method": "lora",
        "lora": LoraOptions(lora_dropout=0.2),
        "train": TrainOptions(**TRAIN, padding="longest", accumulate=2),
    },
    "full packed": {"method": "full"},
    "full padded": {
        "method": "full",
        "train": TrainOptions(**TRAIN, padding="max_length", optimizer="adam", schedule="cosine"),
    },
    "early stopping": {
        "method": "lora",
        "train": TrainOptions(**(TRAIN | {"epochs": 9.0, "lr": 0.3}), patience=1, evaluate_every=5),
    },
}
MOMENTS = {
    "no checkpoint": 0,
    "step 2": 1,
    f"step {STEPS // 2 + 1}": STEPS // 2,  # a new epoch
    "line 12": 11,
    "checkpoint 1": 0,
    "checkpoint 8": 7,
    "replaced 6": 6,
    "evaluation 0": STEPS - 1,
    "result 0": STEPS - 1,
}
"""Moment → the step that a run killed then continues from."""
AGAIN = ("step 4", "checkpoint 3", "line 11", "replaced 15")
"""Four kills of one run, each in what the last left."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory, glue, model, environment) -> dict[tuple[str, ...], tuple[Path, list[dict]]]:
    """Every run of this section: (settings, moment …) → its folder, and what became of each of its processes."""
    out = tmp_path_factory.mktemp("runs")
    stories = [(name,) for name in SETTINGS]
    stories += [("lora packed", moment) for moment in MOMENTS]
    stories += [(name, *AGAIN) for name in SETTINGS]
    plan, folders = [], {}
    for i, (name, *moments) in enumerate(stories):
        config = RunConfig(
            task="sst2",
            data=DataOptions(data=glue),
            model=ModelOptions(model=str(model), threads=1),
            **{"train": TrainOptions(**TRAIN), **SETTINGS[name]},
        )
        folders[name, *moments] = out / str(i)
        RunFolder(out / str(i)).write_request(to_json(config))
        plan += [(str(out / str(i)), moment) for moment in (*moments, None)]
    done = subprocess.run(
        [sys.executable, DISTURBED, "runs"],
        input=json.dumps(plan),
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        check=True,
    )
    became = iter(json.loads(done.stdout.splitlines()[-1]))
    return {story: (folders[story], [next(became) for _ in story]) for story in stories}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_any_moment_continues_as_if_undisturbed(killed, moment):
    undisturbed, _ = killed["lora packed",]
    folder, (first, second) = killed["lora packed", moment]
    assert (first["ended"], second["ended"]) == (-signal.SIGKILL, 0)
    assert (first["continued_from"], second["continued_from"]) == (0, MOMENTS[moment])
    assert_same(folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_run_killed_again_and_again_continues_as_if_undisturbed(killed, settings):
    undisturbed, _ = killed[settings,]
    folder, processes = killed[settings, *AGAIN]
    assert [process["ended"] for process in processes] == [-signal.SIGKILL] * len(AGAIN) + [0]
    assert [process["continued_from"] for process in processes] == [0, 3, 5, 10, 15]
    steps = RunFolder(undisturbed).read_result()["steps"]
    assert_same(folder, undisturbed, steps)
    assert (steps < 9 * ROWS // BATCH) if settings == "early stopping" else (steps == STEPS)


@pytest.mark.slow
def test_the_settings_of_these_runs_differ_as_they_say(killed):
    results = {name: RunFolder(killed[name,][0]).read_result() for name in SETTINGS}
    padding = {name: result["padding"] for name, result in results.items()}
    assert padding == {
        "lora packed": "packed",
        "lora padded": "longest",
        "full packed": "packed",
        "full padded": "max_length",
        "early stopping": "packed",
    }
    weights = [tensors(killed[name,][0]) for name in SETTINGS]
    assert all(a != b for i, a in enumerate(weights) for b in weights[:i])


# The command line, killed from outside


@pytest.fixture(scope="module")
def command(glue, model) -> list[str]:
    arguments = (
        f"--tasks sst2 --seeds 1 --epochs {EPOCHS} --batch-size {BATCH} --lr 3e-3 --threads 1 --keep-models"
    )
    return [*arguments.split(), "--data", str(glue), "--model", str(model)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, command, environment) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    continue_to_the_end(out, [*command, "--methods", "full", "lora"], environment)
    return out


def continue_to_the_end(out: Path, command: list[str], environment: dict[str, str]):
    plain = [sys.executable, "-m", "rankwise", "compare", *command, "--out", str(out)]
    done = subprocess.run(plain, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def interrupt(
    out: Path, command: list[str], environment: dict[str, str], method: str, moment: str, how: signal.Signals
) -> tuple[int, str]:
    """Starts the command in a process group of its own, waits for the moment and sends the whole group a signal."""
    marker = out.with_name(f"{method} {moment} {how.name}")
    with out.with_name("stderr").open("w+", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            [sys.executable, DISTURBED, "compare", method, moment, str(marker), *command, "--out", str(out)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            while not marker.exists():
                assert process.poll() is None, f"ended before {moment} with {process.returncode}"
                time.sleep(0.02)
            os.killpg(process.pid, how)
            code = process.wait(timeout=120)
            stderr.seek(0)
            return code, stderr.read()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def figures(out: Path) -> list[tuple]:
    """The report's rows without times."""
    return [
        (row.task, row.method, row.score, row.difference, row.p_rows, row.trainable)
        for row in collect(out).rows
    ]


@pytest.mark.slow
def test_kill_9_of_the_whole_group_in_the_middle_of_a_grid_changes_nothing(
    tmp_path, command, environment, undisturbed
):
    out, both = tmp_path / "out", [*command, "--methods", "full", "lora"]
    assert interrupt(out, both, environment, "full", "step 12", signal.SIGKILL)[0] == -signal.SIGKILL
    full, lora = RunFolder(out / "sst2.full.s0"), RunFolder(out / "sst2.lora.s0")
    assert full.checkpoint
    assert not full.finished
    assert not lora.has_run
    assert interrupt(out, both, environment, "lora", "checkpoint 9", signal.SIGKILL)[0] == -signal.SIGKILL
    assert full.finished
    assert lora.checkpoint
    assert not lora.finished
    continue_to_the_end(out, both, environment)
    for run in (full, lora):
        assert_same(run.path, undisturbed / run.path.name)
    assert figures(out) == figures(undisturbed)


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_same_command_continues(tmp_path, command, environment, undisturbed):
    out, lora = tmp_path / "out", [*command, "--methods", "lora"]
    shutil.copytree(undisturbed / "sst2.full.s0", out / "sst2.full.s0")  # of an earlier command
    code, stderr = interrupt(out, lora, environment, "lora", "step 9", signal.SIGINT)
    assert code == 130
    assert stderr.splitlines()[-1] == (
        "Interrupted: 0 of 1 runs are finished, 1 begun. The same command continues from there."
    )
    run = RunFolder(out / "sst2.lora.s0")
    assert run.checkpoint
    assert not run.read_run()["failed"]
    continue_to_the_end(out, lora, environment)
    assert_same(run.path, undisturbed / run.path.name)


# What can't be continued, and what a run begins with


@pytest.fixture
def run(tmp_path, glue, model, monkeypatch):
    """A run of one step, in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def start(folder: str = "run", **train) -> RunFolder:
        run = RunFolder(tmp_path / folder)
        config = RunConfig(
            task="sst2",
            data=DataOptions(data=glue, limit_train=4),
            model=ModelOptions(model=str(model), threads=1),
            train=TrainOptions(**{"epochs": 1.0, "batch_size": 4, "lr": 1e-3, "warmup": 0.0, **train}),
        )
        run.write_request(to_json(config))
        return run

    return start


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "other tensors"])
def test_a_damaged_checkpoint_is_named(run, damage):
    folder = run()

    def save(path: Path):
        (path / "training.json").write_text('{"step": 0, "seconds": 0.0, "steps": 1}', encoding="utf-8")
        content = {"cut": b"\x40", "empty": b"", "other tensors": b"\x02\0\0\0\0\0\0\0{}"}
        if damage in content:
            (path / "training.safetensors").write_bytes(content[damage])

    folder.replace_checkpoint(save)
    with pytest.raises(
        RankwiseError, match=r"run/checkpoint-1 is damaged \(.+\)\. Remove it to begin this run anew\."
    ):
        execute(folder, lambda event: None)
    assert not folder.finished


def test_of_two_checkpoints_the_newest_whole_one_is_taken(run, monkeypatch):
    """A kill may leave two, and the newer one may be torn by the disk."""
    monkeypatch.setattr("rankwise.runs.run.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("rankwise.runs.run.CHECKPOINT_SHARE", float("inf"))
    monkeypatch.setattr("rankwise.run_folder.shutil.rmtree", lambda *_, **__: None)
    monkeypatch.setattr(RunFolder, "write_result", lambda *_: None)
    folder = run(epochs=4.0)
    execute(folder, lambda event: None)
    assert len(folder.checkpoints) == 3
    torn = folder.checkpoints[0] / "training.safetensors"
    os.truncate(torn, torn.stat().st_size - 7)
    monkeypatch.undo()
    told = []
    execute(folder, told.append)
    assert "Continued from step 2." in told[0]["notes"]


def test_a_run_can_continue_from_its_first_minute_on(run, monkeypatch):
    """Steps take ten seconds of the clock that says when a checkpoint is due."""
    now, saved = [0.0], []
    append, replace = RunFolder.append_steps, RunFolder.replace_checkpoint

    def append_steps(self, lines):
        now[0] += 10
        append(self, lines)

    def replace_checkpoint(self, save):
        saved.append(now[0])
        replace(self, save)

    monkeypatch.setattr("rankwise.runs.run.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(RunFolder, "append_steps", append_steps)
    monkeypatch.setattr(RunFolder, "replace_checkpoint", replace_checkpoint)
    execute(run(epochs=7.0), lambda event: None)
    assert saved == [10, 30, 50]


@pytest.mark.parametrize("file", ["training.json", "training.safetensors", "SHA256SUMS"])
def test_a_single_changed_bit_of_a_checkpoint_is_seen(run, monkeypatch, file):
    monkeypatch.setattr("rankwise.runs.run.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("rankwise.runs.run.CHECKPOINT_SHARE", float("inf"))
    folder = run(epochs=2.0)

    def stop(event):
        if event["event"] == "evaluate":
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        execute(folder, stop)
    assert folder.checkpoint
    content = bytearray((folder.checkpoint / file).read_bytes())
    content[len(content) * 2 // 3] ^= 1
    (folder.checkpoint / file).write_bytes(content)
    with pytest.raises(RankwiseError, match="checkpoint-2 is damaged"):
        execute(folder, lambda event: None)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"threads": 10**9}, "threads"),
        ({"threads": "2"}, "threads"),
        ({"dtype": "complex64"}, "dtype"),
        ({"padding": "none"}, "padding"),
        ({"engine": {}}, "engine.micro_batches"),
        ({"engine": {"micro_batches": 0, "recompute": False, "cost": None, "budget": None}}, "micro_batches"),
        ([], "facts"),
        ("x", "facts"),
    ],
)
def test_choices_that_no_run_makes_are_named(run, facts, says):
    folder = run()
    folder.update_run_json(facts=facts)
    with pytest.raises(RankwiseError, match=rf"run\.json is damaged \(.*{says}.*\)\. Remove its folder"):
        execute(folder, lambda event: None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": "0"}, "seed is '0'"),
        ({"seed": True}, "seed is True"),
        ({"task": None}, "task is None"),
        ({"train": {"epochs": "3"}}, "epochs is '3'"),
        ({"train": {"optimizer": "sgd"}}, "optimizer is 'sgd'"),
        ({"train": {"epoch": 3}}, "there is no option epoch"),
        ({"train": None}, "train is None"),
        ({"lora": {"targets": 3}}, "targets is 3"),
        ({"lora": {"targets": [3]}}, "targets is 3"),
        ({"data": {"data": ["x"]}}, "data is"),
        ({"model": {"base_bits": 5}}, "base_bits is 5"),
    ],
)
def test_a_request_that_is_none_is_named(run, changes, says):
    folder = run()
    folder.update_run_json(requested={**folder.read_run()["requested"], **changes})
    with pytest.raises(RankwiseError, match=r"run\.json is damaged") as error:
        execute(folder, lambda event: None)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(28, "No space left on device"), KeyboardInterrupt()]
)
def test_what_goes_wrong_after_the_last_step_loses_nothing_that_was_trained(run, error):
    folder, undisturbed = run(epochs=3.0), run("undisturbed", epochs=3.0)
    execute(undisturbed, lambda event: None)

    def fail(event):
        if event["event"] == "evaluate":
            raise error

    with pytest.raises(type(error)):
        execute(folder, fail)
    assert folder.checkpoint
    told = []
    execute(folder, told.append)
    assert "Continued from step 3." in told[0]["notes"]
    assert_same(folder.path, undisturbed.path, steps=3)


def test_a_signal_behind_the_last_step_is_not_lost(run, monkeypatch):
    from rankwise.runs import interruption
    from rankwise.runs import run as run_module

    folder, undisturbed = run(epochs=3.0), run("undisturbed", epochs=3.0)
    execute(undisturbed, lambda event: None)
    train = run_module._train

    def train_and_hear(*arguments):
        train(*arguments)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_train", train_and_hear)
        with (
            interruption.listening((signal.SIGTERM,)),
            pytest.raises(interruption.Interrupted, match="after step 3 of 3. The same command continues"),
        ):
            execute(folder, lambda event: None)
    assert not folder.finished
    with interruption.listening((signal.SIGTERM,)):
        execute(folder, lambda event: None)
    assert_same(folder.path, undisturbed.path, steps=3)


def test_a_checkpoint_that_cannot_be_written_costs_only_itself(run, monkeypatch):
    from rankwise.runs import run as run_module

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_module, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(run_module.checkpoint, "save", full)
    folder, told = run(epochs=2.0), []
    execute(folder, told.append)
    assert folder.finished
    notes = [event["text"] for event in told if event["event"] == "note"]
    assert len(notes) == 1
    assert re.match(r"A checkpoint couldn't be written\. .*: No space left on device", notes[0])
    assert not (folder.path / "checkpoint-partial").exists()


def test_what_was_chosen_when_a_run_began_is_kept_when_it_continues(run):
    """As if it had begun on a machine of another kind, which chooses otherwise."""
    fresh, other = run("fresh"), run("other")
    here = execute(fresh, lambda event: None)
    dtype = {"float32": "bfloat16", "bfloat16": "float32"}[here["dtype"]]
    other.update_run_json(facts={"threads": 1, "dtype": dtype, "padding": "longest"})
    there = execute(other, lambda event: None)
    assert here["padding"] == "packed"
    assert (there["padding"], there["dtype"]) == ("longest", dtype)


def test_weights_that_come_apart_in_the_last_step_are_no_result(run):
    folder = run(lr=1e30)
    with pytest.raises(
        RankwiseError, match=r"The loss on the validation rows is (nan|inf) after step 1 of 1\. Lower `lr=`"
    ):
        execute(folder, lambda event: None)
    assert not folder.finished
