"""PEFT's methods as contenders: each trained, counted as PEFT counts, saved as PEFT saves, and put to use."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from peft import AdaLoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import tiny
from rankwise import downloads
from rankwise.adapters.predict import evaluate, open_trained
from rankwise.config import DataOptions, LoraOptions, ModelOptions, RunConfig, TableOptions, TrainOptions
from rankwise.config_json import to_json
from rankwise.engine import checkpoint
from rankwise.errors import RankwiseError
from rankwise.run_folder import RunFolder
from rankwise.runs import methods, peft_methods
from rankwise.runs.prepare import prepare
from rankwise.runs.run import execute

NAMES = ["adalora", "dora", "eva", "pissa", "vera", "ia3", "prefix", "prompt"]


def asked(
    method: str,
    *,
    rows: int = 480,
    model: str | None = None,
    dtype: Literal["auto", "float32"] = "auto",
    **train,
) -> RunConfig:
    """A run on movies of `rows` / 8 steps."""
    return RunConfig(
        method=method,
        data=DataOptions(limit_train=rows, limit_eval=100),
        model=ModelOptions(model=model, threads=1, dtype=dtype),
        train=TrainOptions(**{"epochs": 1, "batch_size": 8, **train}),
    )


def run(folder: Path, config: RunConfig) -> dict:
    store = RunFolder(folder)
    store.write_request(to_json(config))
    return execute(store, lambda event: None)


@pytest.mark.parametrize("rank", [2, 12])
def test_eva_starts_along_what_a_pooler_is_given_too(rank, tmp_path):
    """It is given one position of each row, where other layers have all. Truth: the principal components of the base's own."""
    base = tiny.model_folder(tmp_path / "base", "bert")
    store = RunFolder(tmp_path / "run")
    method = f"peft:eva,rank={rank},targets=all-linear"
    store.write_request(to_json(asked(method, rows=480, model=str(base))))
    prepared = prepare(store)
    given = []
    whole = AutoModelForSequenceClassification.from_pretrained(base).eval()
    whole.bert.pooler.dense.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    rows = prepared.training.rows
    with torch.no_grad():
        for start, end in zip(rows.offsets, rows.offsets[1:], strict=False):
            whole(torch.tensor(rows.input_ids[start:end], dtype=torch.long)[None])
    spread = torch.cat(given) - torch.cat(given).mean(0)
    A = prepared.model.bert.pooler.dense.lora_A["default"].weight
    assert A.dtype == torch.float32  # trained, whatever the base is kept in
    best = torch.linalg.svdvals(spread)[: len(A)].square().sum()
    directions = torch.linalg.qr(A.T).Q
    assert (spread @ directions).square().sum() > 0.9 * best


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_of_pefts_methods_count_save_and_score_as_peft_does(name, tmp_path):
    # float32: after few steps many rows are near the decision boundary, where bfloat16's rounding may decide
    result = run(tmp_path, asked(f"peft:{name}", rows=240, dtype="float32"))
    assert result["steps"] == 30
    config = PeftConfig.from_pretrained(str(tmp_path))
    config.inference_mode, config.init_lora_weights = False, True
    if isinstance(config, AdaLoraConfig):  # counted in training, before the last masks leave ranks out
        config.rank_pattern = None
    fresh = AutoModelForSequenceClassification.from_pretrained(downloads.model_folder(), num_labels=2)
    assert result["trainable_params"] == get_peft_model(fresh, config).get_nb_trainable_parameters()[0]
    assert result["head_params"] == sum(p.numel() for p in fresh.classifier.original_module.parameters())
    assert 0 < result["adapter_params"] == result["trainable_params"] - result["head_params"]
    assert result["padding"] == ("longest" if name in ("prefix", "prompt") else "packed")

    trained = open_trained(tmp_path)
    assert trained.task.label_names == ("negative", "positive")
    again = evaluate(trained)
    pruned = (
        0.015 if isinstance(config, AdaLoraConfig) else 0.0
    )  # a row may lie on the edge: sums without what was left out
    assert again["accuracy"] == pytest.approx(result["score"], abs=pruned)
    assert again["loss"] == pytest.approx(result["scores"]["validation"]["loss"], abs=5e-3)


@pytest.mark.parametrize("method", ["head", "bitfit"])
def test_head_and_bitfit_train_what_they_say_and_nothing_else(method, tmp_path):
    base = tiny.model_folder(tmp_path / "base", "bert")
    store = RunFolder(tmp_path / "run")
    store.write_request(to_json(asked(method, rows=16, model=str(base), lr=1e-2)))
    prepared = prepare(store)
    before = {name: p.detach().clone() for name, p in prepared.model.named_parameters()}
    with prepared.training.compute.running(prepared.model):
        prepared.training.step()
    changed = {name for name, p in prepared.model.named_parameters() if not torch.equal(p, before[name])}
    head = {name for name in before if name.startswith("classifier.")}
    biases = {name for name in before if name.endswith(".bias") and "norm" in name.lower()}
    expected = head if method == "head" else head | biases
    assert expected <= changed
    assert all(name in head or (method == "bitfit" and name.endswith(".bias")) for name in changed)


def test_bitfit_is_refused_where_there_are_no_biases(tmp_path):
    model = tiny.classifier("llama")
    with pytest.raises(RankwiseError, match="no biases"):
        methods.named("bitfit").prepare(model, RunConfig(method="bitfit"), [])


def table(folder: Path) -> Path:
    rows = tiny.reviews(64)
    path = folder / "reviews.jsonl"
    path.write_text("".join(f'{{"text": "{row["text"]}", "label": "{row["label"]}"}}\n' for row in rows))
    return path


def adalora(folder: Path, tmp_path: Path, spec: str = "peft:adalora,rank=2") -> RunFolder:
    store = RunFolder(folder)
    config = RunConfig(
        method=spec,
        table=TableOptions(train_file=(table(tmp_path),)),
        model=ModelOptions(model=str(tmp_path / "base"), threads=1, dtype="float32"),
        train=TrainOptions(epochs=5, batch_size=8, lr=1e-2),
    )
    store.write_request(to_json(config))
    return store


@pytest.mark.slow
def test_adalora_ends_at_its_budget_and_resumes_exactly(tmp_path):
    tiny.model_folder(tmp_path / "base", "bert")
    whole = prepare(adalora(tmp_path / "whole", tmp_path))
    halved = prepare(adalora(tmp_path / "halved", tmp_path))
    steps = whole.training.steps
    (config,) = whole.adapted.wrapper.peft_config.values()
    assert (config.total_step, config.target_r, config.init_r) == (steps, 2, 3)
    with whole.training.compute.running(whole.model):
        while not whole.training.done:
            whole.training.step()
    kept = sum(sum(kept) for kept in config.rank_pattern.values())
    assert kept == 2 * len(config.rank_pattern)  # the budget: target_r times the matrices
    singular = [p for name, p in whole.model.named_parameters() if "lora_E" in name]
    assert sum(int((e != 0).sum()) for e in singular) == kept

    middle = steps // 2
    with halved.training.compute.running(halved.model):
        for _ in range(middle):
            halved.training.step()
    (tmp_path / "checkpoint").mkdir()
    checkpoint.save(halved.training, tmp_path / "checkpoint")
    resumed = prepare(adalora(tmp_path / "resumed", tmp_path))
    checkpoint.load(resumed.training, tmp_path / "checkpoint")
    with resumed.training.compute.running(resumed.model):
        while not resumed.training.done:
            resumed.training.step()
    ours, expected = dict(resumed.model.named_parameters()), dict(whole.model.named_parameters())
    assert all(torch.equal(ours[name], value) for name, value in expected.items())


def test_adaloras_penalty_is_that_of_peft(tmp_path):
    tiny.model_folder(tmp_path / "base", "bert")
    run = prepare(adalora(tmp_path / "run", tmp_path))
    wrapper = run.adapted.wrapper
    ids, labels = torch.randint(3, 15, (2, 6)), torch.tensor([0, 1])
    with_penalty = wrapper.base_model(input_ids=ids, labels=labels).loss
    alone = run.model(input_ids=ids, labels=labels).loss
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    theirs = torch.autograd.grad(with_penalty - alone, parameters, allow_unused=True)
    for ours, expected in zip(run.training.hooks.gradients(parameters), theirs, strict=True):
        if ours is not None:
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("peft:dorra", "'peft:dorra'.*Did you mean 'dora'"),
        ("peft:vera,rnak=4", "no setting 'rnak'.*Did you mean 'rank'"),
        ("peft:prefix,num_virtual_tokens=many", "num_virtual_tokens takes int, not 'many'"),
        ("peft:ia3,rank=4", "peft:ia3 has no setting 'rank'"),
        ("peft:dora,rank=x", "rank takes int"),
        ("head:rank=4", "head has no settings of its own"),
        ("lora:rank", "'rank' is no setting"),
        ("full:lr=x", "lr takes float, not 'x'"),
        ("full:lr=-1e-4", "lr must be above 0"),
        ("bitfitt", "Did you mean 'bitfit'"),
    ],
)
def test_a_misspelt_method_or_setting_is_refused_with_the_nearest_name(spec, message):
    with pytest.raises(RankwiseError, match=message):
        methods.parse(spec, LoraOptions())


def test_settings_of_a_method_reach_peft(tmp_path):
    base = str(tiny.model_folder(tmp_path / "base", "bert"))
    config = asked("peft:dora,rank=3,alpha=5,targets=key,lr=2e-3", rows=8, model=base, lr=1e-3)
    run(tmp_path / "dora", config)
    assert RunFolder(tmp_path / "dora").read_run()["resolved"]["train"]["lr"] == 2e-3
    saved = load_file(tmp_path / "dora" / "adapter_model.safetensors")
    assert saved["base_model.model.bert.encoder.layer.0.attention.self.key.lora_A.weight"].shape == (3, 32)
    read = PeftConfig.from_pretrained(str(tmp_path / "dora"))
    assert (read.r, read.lora_alpha, read.use_dora) == (3, 5, True)
    run(tmp_path / "prefix", asked("peft:prefix,num_virtual_tokens=4", rows=8, model=base, lr=1e-3))
    assert PeftConfig.from_pretrained(str(tmp_path / "prefix")).num_virtual_tokens == 4
    with pytest.raises(RankwiseError, match="virtual tokens.*`max_length="):
        run(tmp_path / "long", asked("peft:prompt,num_virtual_tokens=60", rows=8, model=base, lr=1e-3))


def test_every_preset_is_a_method_of_pefts():
    for name in peft_methods.PRESETS:
        peft_methods.kind(name)
