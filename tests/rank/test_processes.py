"""Several processes, or matrices that are split among them: refused before the first step."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import tiny
from rankwise.errors import RankwiseError
from rankwise.lora.peft_layer import low_rank_layers
from rankwise.lora.wrappers import bare
from rankwise.rank.controller import RankController

SCRIPT = """
import os, sys, torch, transformers as hf
sys.path.insert(0, sys.argv[1])
import tiny, rankwise
from torch import distributed
from torch.distributed.tensor import DTensor, distribute_tensor, init_device_mesh
from rankwise.errors import RankwiseError

def refusal(function):
    try:
        function()
    except RankwiseError as error:
        os.write(1, f"rank {distributed.get_rank()}: {error}\\n".encode())  # in one piece: two processes write
    else:
        raise SystemExit("not refused")

def in_a_loop(split=False):
    model = rankwise.adapt(tiny.classifier("bert"))
    parameters = [p for p in model.parameters() if p.requires_grad]
    if split:
        layer = next(module for module in model.modules() if hasattr(module, "lora_A"))
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        layer.lora_A = torch.nn.Parameter(distribute_tensor(layer.lora_A.detach(), mesh))
    rankwise.RankController(model, lambda: torch.zeros(4), 100, torch.optim.AdamW(parameters))

def in_a_trainer():
    rows = [{**tiny.tokenizer()(r["text"]), "labels": int(r["label"] == "positive")} for r in tiny.reviews(40)]
    model = rankwise.adapt(tiny.classifier("bert"))
    arguments = hf.TrainingArguments(sys.argv[2], max_steps=80, report_to=[], use_cpu=True, disable_tqdm=True)
    collate = hf.DataCollatorWithPadding(tiny.tokenizer())
    trainer = hf.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, data_collator=collate)
    callback = rankwise.find_ranks(trainer)
    try:
        trainer.train()
    finally:
        assert trainer.state.global_step == 0 and callback.decisions == []

distributed.init_process_group("gloo")
refusal(in_a_loop)
refusal(lambda: in_a_loop(split=True))
refusal(in_a_trainer)
"""


@pytest.mark.slow
def test_two_processes_are_refused_before_the_first_step(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(tmp_path / "script.py"), str(Path(tiny.__file__).parent), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        said = [line for line in done.stdout.splitlines() if line.startswith(f"rank {rank}: ")]
        assert len(said) == 3, done.stdout
        assert "RankController works in one process; 2 train together" in said[0]
        assert "FSDP (a DTensor) has split its matrices" in said[1]
        assert "RankCallback works in one process on one device; this training has 2" in said[2]


def test_matrices_that_zero_3_has_split_are_refused_by_name():
    """ZeRO-3 leaves each parameter empty and gives it a `ds_id`; DeepSpeed itself isn't needed to see that."""
    model = get_peft_model(tiny.classifier("bert"), LoraConfig(r=4, target_modules=["query"]))
    parameters = [p for p in model.parameters() if p.requires_grad]
    for layer in low_rank_layers(model).values():
        layer.lora_A.ds_id, layer.lora_A.data = 0, torch.empty(0)
    with pytest.raises(RankwiseError, match=r"query can't be found: DeepSpeed ZeRO-3 has split"):
        RankController(model, lambda: torch.zeros(4), 100, torch.optim.AdamW(parameters))


def test_deepspeeds_engine_is_refused_by_name():
    engine = type("DeepSpeedEngine", (nn.Module,), {})()
    engine.module = tiny.classifier("bert")
    with pytest.raises(RankwiseError, match="wrapped by DeepSpeedEngine"), bare(engine, peft=True):
        pass
