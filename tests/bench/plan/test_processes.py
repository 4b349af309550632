"""A plan for several processes against two real ones."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from rankwise.bench.plan import MemoryPlanner, Setting, plan
from rankwise.bench.plan.weight import shares
from rankwise.config import PlanConfig
from rankwise.engine.measure import KINDS

LENGTHS = np.array([5, 9, 14, 30, 31, 7, 40, 12, 33, 8])


def setting(family, method, layers=2, **changes):
    sizes = {
        **tiny.CONFIGS[family].to_dict(),
        "num_labels": 2,
        "num_hidden_layers": layers,
        "layer_types": None,
    }
    config = type(tiny.CONFIGS[family])(**sizes)
    config.pad_token_id = 0
    return replace(Setting(config, method, 4, torch.float32, "packed", processes=2), **changes)


SETTINGS = {
    "full": setting("bert", "full"),
    "full, bfloat16": setting("llama", "full", dtype=torch.bfloat16),
    "lora": setting("bert", "lora", dtype=torch.bfloat16),
    "adaptive": setting("llama", "adaptive", rank=16),
    "padded": setting("bert", "lora", padding="longest"),
    "a language model": setting("llama", "lora", problem="generation", plain_head=True),
    "sharded": setting("bert", "lora", layers=6, shard=True),
    "sharded, full": setting("bert", "full", layers=6, shard=True),
    "sharded, full, bfloat16": setting("llama", "full", layers=4, shard=True, dtype=torch.bfloat16),
    "sharded, adaptive": setting("llama", "adaptive", layers=4, rank=16, shard=True, dtype=torch.bfloat16),
}


@pytest.fixture(scope="module")
def measured():
    """Each setting's peaks in two processes, and the bytes that each of them sent."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, Path(__file__).with_name("measured.py"), *SETTINGS],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return {one["setting"]: one for one in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_plan_for_two_processes_is_what_the_heavier_of_two_real_ones_takes(measured, name):
    planner = MemoryPlanner(SETTINGS[name])
    planned, found = planner.peak(LENGTHS), measured[name]
    real = max(found["peaks"], key=lambda peak: sum(peak.values()))
    assert sum(planned.values()) == pytest.approx(sum(real.values()), rel=0.02)
    exact = ["weights", "gradients", "optimizer"]
    if name.startswith("sharded, full"):  # a layer's gradients are workspace until each process has its part
        exact.remove("gradients")
        for peak in (planned, real):
            peak["workspace"] += peak.pop("gradients")
    for kind in planned:
        assert planned[kind] == pytest.approx(real[kind], rel=0.03, abs=600), kind
    for kind in exact:
        assert planned[kind] == real[kind]
    assert planner.bytes_sent == pytest.approx(found["bytes_sent"], abs=1)


def test_the_shares_of_processes_have_every_row_once():
    found = shares(LENGTHS, 3)
    assert sorted(np.concatenate(found)) == sorted(LENGTHS)
    assert max(share.sum() for share in found) - min(share.sum() for share in found) <= LENGTHS.max()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_deep_model_sends_what_two_shallow_ones_say(method):
    config = type(tiny.CONFIGS["bert"])(**{**tiny.CONFIGS["bert"].to_dict(), "num_hidden_layers": 9})
    config.pad_token_id = 0
    deep = setting("bert", method, architecture=config)
    assert MemoryPlanner(deep).bytes_sent == MemoryPlanner(deep, (9,)).bytes_sent


def test_more_processes_take_less_each_and_say_what_they_send(tmp_path):
    tiny.CONFIGS["bert"].save_pretrained(tmp_path)
    asked = PlanConfig(
        model=str(tmp_path), lengths="20", methods=("full",), memory_mode="fast", dtype="float32"
    )
    (one,), (two,) = (plan(replace(asked, processes=n))["configurations"] for n in (1, 2))
    assert "bytes_sent_a_step" not in one
    fixed = ("weights", "optimizer")
    assert [one["peak_memory_mb"][kind] for kind in fixed] == [two["peak_memory_mb"][kind] for kind in fixed]
    assert two["peak_memory_mb"]["activations"] < one["peak_memory_mb"]["activations"]
    assert two["bytes_sent_a_step"] > 0


def test_a_pass_over_held_out_rows_has_the_layers_shared_out_too():
    whole, shared = (
        MemoryPlanner(setting("llama", "adaptive", layers=6, rank=16, shard=shard)).forward(LENGTHS)
        for shard in (False, True)
    )
    weights, workspace = ((shared - whole)[0, KINDS.index(kind)] for kind in ("weights", "workspace"))
    layer = workspace
    assert layer > 0
    assert weights == -(6 - 6 / 2 - 1) * layer
