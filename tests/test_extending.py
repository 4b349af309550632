"""A package beside rankwise adds names to its tables: it is found by its entry point, in commands and in a grid's processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny

PLUG_IN = """
import numpy as np

from rankwise.runs.methods import METHODS, Method, register
from rankwise.tasks.encoding import Rows
from rankwise.tasks import registry
from rankwise.tasks.task import Task


def train_head_and_norms(model, config, new_modules, rows=None, /):
    METHODS["head"].prepare(model, config, new_modules)
    for name, parameter in model.named_parameters():
        if "LayerNorm" in name:
            parameter.requires_grad_(True)


def toy_rows(split, folder):
    n = 48 if split == "train" else 24
    labels = np.arange(n) % 2
    text = ["good film" if label else "bad film" for label in labels]
    return Rows(text=text, text_pair=None, labels=labels, idx=np.arange(n)), ()


register("norms", Method(label="Norms", prepare=train_head_and_norms, recipe_of="full"))
registry.register(
    Task(
        name="toy",
        text="text",
        text_pair=None,
        label="label",
        label_names=("bad", "good"),
        metrics=("accuracy",),
        source="a test",
        loader=toy_rows,
    )
)
"""


def install(folder: Path, module: str, content: str) -> None:
    """Puts a package with one module and its entry point into a folder of PYTHONPATH, as pip would."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(content)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[rankwise.plugins]\nadditions = {module}\n")


def rankwise(*arguments: object, site: Path) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "rankwise", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.slow
def test_another_packages_task_and_method_are_compared_by_their_names(tmp_path):
    install(tmp_path / "site", "additions_to_rankwise", PLUG_IN)
    model = tiny.model_folder(tmp_path / "model")
    done = rankwise(
        "compare", "--tasks", "toy", "--methods", "norms", "--seeds", 1, "--model", model, "--epochs", 4,
        "--batch-size", 8, "--lr", 0.01, "--dtype", "float32", "--threads", 1, "--out", tmp_path / "out", "--json",
        site=tmp_path / "site",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "toy.norms.s0" / "result.json").read_text())
    assert (result["task"], result["method"], result["n_train"]) == ("toy", "norms", 48)
    norms = 5 * 2 * 32  # of a tiny BERT: weights and biases of five layer norms
    head = 2 * 32 + 2
    assert result["trainable_params"] == norms + head
    assert result["n_validation"] == 24


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import there_is_no_such_module", "ModuleNotFoundError: No module named 'there_is_no_such_module'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def", "SyntaxError"),
        ("raise RuntimeError", "RuntimeError"),
    ],
)
def test_a_plug_in_that_cannot_be_imported_is_named(code, why, tmp_path):
    install(tmp_path / "site", "broken_additions", f"{code}\n")
    done = rankwise("train", "--method", "lora", "--out", tmp_path / "out", site=tmp_path / "site")
    assert done.returncode == 2
    assert f"The plug-in additions (broken_additions) can't be imported: {why}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("Repair or uninstall it.\n")


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"]])
def test_help_loads_neither_plug_ins_nor_torch(arguments, tmp_path):
    site = tmp_path / "site"
    install(site, "loud_additions", "raise SystemExit(3)\n")
    (site / "torch.py").write_text("raise SystemExit(4)\n")
    assert rankwise(*arguments, site=site).returncode == 0
