"""Damaged adapters: refused with a sentence, or read; never a crash, a hang, or too much memory."""

import contextlib
import json
import random
import shutil
import warnings

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import rankwise
import tiny
from faults import damage
from faults.harness import INPUTS, SEED, faults
from rankwise import export
from rankwise.errors import RankwiseError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A base, adapters of several kinds, a loralib file, and rows to evaluate them on."""
    folder = tmp_path_factory.mktemp("whole")
    base = tiny.classifier("bert")
    base.save_pretrained(folder / "base")
    tiny.tokenizer().save_pretrained(folder / "base")
    path = "bert.encoder.layer.0.attention.self.query"
    kinds = {
        "plain": LoraConfig(task_type="SEQ_CLS", r=3, rank_pattern={path: 5}, alpha_pattern={"value": 3}),
        "biased": LoraConfig(task_type="SEQ_CLS", r=3, bias="all", use_dora=True),
        "scaled": IA3Config(task_type="SEQ_CLS"),
    }
    for name, config in kinds.items():
        model = type(base).from_pretrained(folder / "base")
        get_peft_model(model, config).save_pretrained(folder / name)
        file = folder / name / "adapter_model.safetensors"
        state = {key: value + 0.1 * torch.randn_like(value) for key, value in load_file(file).items()}
        save_file(state, file, metadata={"format": "pt"})
    export(folder / "plain", folder / "lora.bin", format="loralib")
    rows = [json.dumps({**row, "label": f"LABEL_{i % 2}"}) for i, row in enumerate(tiny.reviews(12))]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return folder


def loralib(rng, file):
    if rng.random() < 0.3:
        damage.file_bytes(rng, file)
        return
    state = damage.tensors(rng, torch.load(file, weights_only=True))
    torch.save(state if rng.random() < 0.9 else damage.document(rng, {"a": [1, "x"]}), file)


def test_damaged_adapters_are_read_or_refused(whole, tmp_path):
    def make(rng: random.Random, place):
        form = rng.choice(["plain", "plain", "plain", "biased", "scaled", "lora.bin"])
        adapter = place / "adapter"
        if form == "lora.bin":
            shutil.copy(whole / form, adapter)
            loralib(rng, adapter)
            command = rng.choice(["inspect", "export"])
            given = ["--alpha", "16"] if command == "export" else []
            return [command, adapter, *given, *(["--out", place / "out"] if command == "export" else [])]
        shutil.copytree(whole / form, adapter)
        config, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
        if rng.random() < 0.1:
            torch.save(load_file(weights), adapter / "adapter_model.bin")
            weights.unlink()
            damage.file_bytes(rng, adapter / "adapter_model.bin")
        elif rng.random() < 0.5:
            damage.tensor_file(rng, weights)
        if rng.random() < 0.7:
            damage.json_file(rng, config)
        command = rng.choice(["inspect", "evaluate", "export", "merge"])
        base = ["--model", whole / "base"]
        return {
            "inspect": ["inspect", adapter],
            "evaluate": ["evaluate", adapter, whole / "rows.jsonl", *base],
            "export": [
                "export",
                adapter,
                "--out",
                place / "out",
                *rng.choice([[], ["--uniform-rank", 4], ["--max-params", "1k"]]),
            ],
            "merge": ["merge", adapter, "--out", place / "out", *base],
        }[command]

    assert faults(make, tmp_path) == []


def damaged(rng, whole, place):
    """An adapter in a folder, with its tensors or its config damaged."""
    shutil.copytree(whole / rng.choice(["plain", "plain", "biased", "scaled"]), place)
    if rng.random() < 0.5:
        damage.tensor_file(rng, place / "adapter_model.safetensors")
    else:
        config = place / "adapter_config.json"
        config.write_text(json.dumps(damage.document(rng, json.loads(config.read_text()))))
    return place


def test_a_damaged_adapter_that_is_read_computes_what_peft_computes(whole, tmp_path):
    ids = torch.randint(3, 15, (3, 7), generator=torch.Generator().manual_seed(0))
    kind, compared = type(tiny.classifier("bert")), 0
    for seed in range(SEED, SEED + INPUTS):
        folder = damaged(random.Random(seed), whole, tmp_path / str(seed))
        with warnings.catch_warnings(), contextlib.suppress(RankwiseError):
            warnings.simplefilter("ignore")
            ours = rankwise.load(folder, base=str(whole / "base")).eval()(ids).logits
            if (
                not ours.isfinite().all()
            ):  # a number so large that sums overflow; `evaluate` refuses such logits
                continue
            try:
                peft = PeftModel.from_pretrained(kind.from_pretrained(whole / "base"), str(folder))
            except Exception:  # PEFT is stricter with settings that compute nothing
                continue
            torch.testing.assert_close(
                ours, peft.eval()(ids).logits, rtol=1e-3, atol=1e-4, equal_nan=True, msg=f"seed {seed}"
            )
            compared += 1
        shutil.rmtree(folder)
    assert compared
