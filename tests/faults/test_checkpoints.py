"""`rankwise train` on what an earlier run left: an interrupted one's checkpoint and record, a finished one's record and results.

What is damaged is refused in a sentence, or the run goes on. Where the sums beside a checkpoint are made anew for what was damaged, what is
read is all that stands against it.
"""

import json
import shutil
import signal
from pathlib import Path

import pytest

import tiny
from faults import damage
from faults.harness import faults
from rankwise.cli import main
from rankwise.files import SUMS, write_sums
from rankwise.run_folder import RunFolder

pytestmark = pytest.mark.slow

OPTIONS = ["--epochs", "2", "--batch-size", "16", "--lr", "1e-3", "--threads", "1", "--dtype", "float32"]


def trained(folder: Path, *arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", *map(str, arguments), "--out", str(folder)])
    assert ended.value.code == 0


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    """A run of four steps, without its folder."""
    folder = tmp_path_factory.mktemp("given")
    rows = folder / "reviews.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in tiny.reviews(40)))
    return [str(rows), "--model", str(tiny.model_folder(folder / "model")), "--method", "lora", *OPTIONS]


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    trained(folder, *command)
    return folder


@pytest.fixture(scope="module")
def interrupted(command, tmp_path_factory) -> Path:
    """The same run after its third step, with a checkpoint."""
    folder, append = tmp_path_factory.mktemp("interrupted") / "run", RunFolder.append_steps

    def interrupt(self, lines):
        append(self, lines)
        if lines[-1]["step"] == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append_steps", interrupt)
        with pytest.raises(SystemExit) as ended:
            main(["train", *command, "--out", str(folder)])
    assert ended.value.code == 130
    assert RunFolder(folder).checkpoint
    return folder


def test_what_an_interrupted_run_left(command, interrupted, tmp_path):
    def make(rng, folder):
        out = folder / "run"
        shutil.copytree(interrupted, out)
        stored = RunFolder(out).checkpoint
        assert stored is not None
        kind = rng.randrange(6)
        if kind == 0:
            damage.json_file(rng, out / "run.json")
        elif kind == 1:
            damage.json_lines(rng, out / "steps.jsonl")
        elif kind == 2:
            damage.file_bytes(rng, stored / SUMS)
        elif kind == 3:
            damage.json_file(rng, stored / "training.json")
        elif kind == 4:
            damage.tensor_file(rng, stored / "training.safetensors")
        else:
            rng.choice(sorted(stored.iterdir())).unlink()
        if kind > 2 and rng.random() < 0.8:
            (stored / SUMS).unlink(missing_ok=True)
            write_sums(stored)
        return ["train", *command, "--out", out]

    assert faults(make, tmp_path) == []


def test_what_a_finished_run_left(command, finished, tmp_path):
    def make(rng, folder):
        out = folder / "run"
        shutil.copytree(finished, out)
        name = rng.choice(["run.json", "result.json", "result.json", "steps.jsonl", "predictions.parquet"])
        kinds = {".json": damage.json_file, ".jsonl": damage.json_lines, ".parquet": damage.file_bytes}
        kinds[Path(name).suffix](rng, out / name)
        if rng.random() < 0.1:
            (out / name).unlink()
        return ["train", *command, "--out", out, *(["--json"] if rng.random() < 0.5 else [])]

    assert faults(make, tmp_path) == []
