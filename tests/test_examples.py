"""The examples, run as scripts on the embedded model's folder, or on a tiny model."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

import tiny
from rankwise import downloads

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: object) -> str:
    environment = dict(os.environ, HF_HUB_OFFLINE="1")
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["trainer.py", "plain_loop.py"])
def test_an_example_trains_an_adapter_that_peft_and_pipelines_load(name, tmp_path):
    base = downloads.model_folder()
    out = run(name, tmp_path / "adapter", base)
    if name == "trainer.py":
        assert "accuracy 1.00" in out
    else:
        assert float(out.splitlines()[-1].removeprefix("loss ")) < 0.3
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    answers = run("pipeline.py", tmp_path / "adapter", tmp_path / "merged").splitlines()
    good, bad = ("positive", "negative") if name == "trainer.py" else ("LABEL_1", "LABEL_0")
    assert answers[0].startswith(f"a fine film: {good}")
    assert answers[1].startswith(f"a dull plot: {bad}")


@pytest.mark.parametrize(("name", "package"), [("optuna_search.py", "optuna"), ("ray_tune.py", "ray")])
def test_a_search_prunes_by_the_held_out_loss_and_names_its_best_trial(name, package, tmp_path):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} isn't installed")
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["text", "label"])
        table.writeheader()
        table.writerows(tiny.reviews(130))
    out = run(name, tmp_path / "reviews.csv", 5, tiny.model_folder(tmp_path / "base"))
    last = next(line for line in reversed(out.splitlines()) if "held-out loss" in line)
    assert float(last.partition("held-out loss ")[2].partition(":")[0]) < 0.72
    if package == "optuna":
        assert last.startswith("5 trials, ")
        assert "0 pruned" not in last
