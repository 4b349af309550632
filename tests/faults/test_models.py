"""Damaged model folders: config, tokenizer and weights, as whole models and as the base of an adapter."""

import json
import random
import shutil
from pathlib import Path

import pytest

import rankwise
import tiny
from faults import damage
from faults.harness import faults

pytestmark = pytest.mark.slow

DAMAGE = {
    "config.json": damage.json_file,
    "tokenizer.json": damage.json_file,
    "tokenizer_config.json": damage.json_file,
    "model.safetensors": damage.tensor_file,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A whole model, an adapter on it, and labelled rows."""
    folder = tmp_path_factory.mktemp("good")
    model = tiny.classifier("bert", num_labels=2)
    model.config.id2label, model.config.label2id = (
        {0: "negative", 1: "positive"},
        {"negative": 0, "positive": 1},
    )
    model.save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    rankwise.save(rankwise.adapt(model, 2), folder / "adapter", base_model="nowhere")
    rows = "".join(json.dumps(row) + "\n" for row in tiny.reviews(12))
    (folder / "rows.jsonl").write_text(rows)
    return folder


def test_no_model_folder_makes_a_command_crash(good, tmp_path):
    def make(rng: random.Random, folder: Path) -> list[object]:
        shutil.copytree(good, folder, dirs_exist_ok=True)
        model, adapter, rows = folder / "model", folder / "adapter", folder / "rows.jsonl"
        name = rng.choice(sorted(DAMAGE))
        DAMAGE[name](rng, model / name)
        return rng.choice(
            [
                ["evaluate", model, rows],
                ["predict", model, rows, "--out", folder / "p.csv"],
                ["evaluate", adapter, rows, "--model", model],
                ["merge", adapter, "--out", folder / "merged", "--model", model],
                ["train", rows, "--model", model, "--out", folder / "run", "--epochs", 1, "--threads", 1],
            ]
        )

    found = faults(make, tmp_path)
    assert not found, "\n".join(found)
