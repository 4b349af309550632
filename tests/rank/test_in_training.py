"""Adaptive rank in training: what is held out, resuming, what is saved, and other people's loops."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf
from peft import PeftModel

import rankwise
import tiny
from rankwise.adapters import compress, inspect, predict
from rankwise.adapters.rank_table import draw
from rankwise.engine import checkpoint
from rankwise.engine.compute import predict_logits
from rankwise.engine.measure import KINDS, MB, TensorMemory
from rankwise.lora.inject import adapt, adapt_at_start_rank
from rankwise.lora.layer import lora_layers
from rankwise.tasks.encoding import Rows
from short_training import OPTIONS, run, training


@pytest.fixture(scope="module")
def trained():
    return run(training(n=1000))


@pytest.mark.slow
def test_ranks_fall_and_the_optimizer_goes_on(trained):
    assert [d for d in trained.decisions if d.kind == "prune" and d.accepted]
    assert sum(trained.rank.ranks.values()) < 0.5 * 16 * len(trained.rank.ranks)
    for path, layer in lora_layers(trained.model).items():
        assert layer.lora_A.shape[0] == layer.lora_B.shape[1] == trained.rank.ranks[path]


@pytest.mark.slow
def test_passes_over_held_out_rows_are_in_the_recorded_peak():
    state = training(batch_size=2, epochs=0.25)  # 75 steps of two short rows, decided on by 60
    with TensorMemory("cpu", state.model) as alone:
        predict_logits(state.model, state.rows.select(state.batches.held_out), state.compute)
    with state.compute.running(state.model):
        plain = [state.step(profile=True) for _ in range(3)]
        steps = []
        while not state.rank.done:
            steps.append(state.step())
    assert max(step.memory["total"] for step in plain) < alone.peak_mb
    recorded = [step.memory for step in steps if step.step in state.rank.checks and step.memory]
    assert max(memory["total"] for memory in recorded) >= alone.peak_mb
    for memory in recorded:
        assert round(memory["total"] * MB) == sum(round(memory[kind] * MB) for kind in KINDS)


@pytest.mark.slow
def test_held_out_rows_are_trained_on_only_after_the_last_decision():
    state = training()
    held = set(state.batches.held_out.tolist())
    assert len(held) == 60
    seen = {False: set(), True: set()}
    with state.compute.running(state.model):
        while not state.done:
            seen[state.rank.done].update(state.batch().tolist())
            assert len(state.batch()) == 8
            state.step()
    assert not held & seen[False]
    assert held & seen[True]


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["packed", "longest"])
def test_a_resumed_run_gives_the_same_ranks_and_weights(padding, tmp_path):
    options = {"padding": padding, "targets": ("all-linear",), "epochs": 3.5}
    whole = training(**options)
    for step in (130, 230):  # both after a decision; what is saved goes on as though it had not been
        (tmp_path / str(step)).mkdir()
        checkpoint.save(run(whole, until=step), tmp_path / str(step))
    assert {105, 210} <= {d.step for d in run(whole).decisions}
    expected = dict(whole.model.named_parameters())
    for step in (130, 230):
        resumed = training(**options)
        checkpoint.load(resumed, tmp_path / str(step))
        run(resumed)
        assert [d.to_json() for d in resumed.decisions] == [d.to_json() for d in whole.decisions]
        for name, parameter in resumed.model.named_parameters():
            assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize("start", [None, 8, 32])
def test_little_data_keeps_a_fixed_safe_rank_at_the_usual_scale(start):
    state = training(n=100, start=start)
    assert state.rank is None
    assert "every layer keeps rank 8" in state.rank_note
    assert {(x.rank, x.scaling) for x in lora_layers(state.model).values()} == {(8, 2.0)}
    assert run(state).done


@pytest.mark.slow
def test_adapter_dropout_does_not_keep_ranks_from_being_found():
    state = run(training(dropout=0.1))
    assert any(d.accepted for d in state.decisions)


def test_sorting_leaves_the_function_and_orders_components():
    state = run(training(), until=50)
    before = {path: x.delta() for path, x in lora_layers(state.model).items()}
    state.rank.sort()
    for path, x in lora_layers(state.model).items():
        torch.testing.assert_close(x.delta(), before[path], rtol=1e-4, atol=1e-6)
        norms = x.lora_B.norm(dim=0) * x.lora_A.norm(dim=1)
        assert norms[:4].mean() > 3 * norms[-4:].mean()


def inputs():
    ids = torch.tensor([[1, 4, 8, 6, 2, 0], [1, 5, 9, 7, 4, 2]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def set_ranks(model, ranks):
    """Random matrices of some ranks, over and over, in a model's layers."""
    for rank, layer in zip(itertools.cycle(ranks), lora_layers(model).values(), strict=False):
        layer.resize(0.1 * torch.randn(rank, layer.in_features), 0.1 * torch.randn(layer.out_features, rank))


@pytest.mark.parametrize("ranks", [(3, 0, 1, 5), (0, 0, 0, 2), (0,)])
def test_peft_loads_what_was_found(ranks, tmp_path):
    tiny.model_folder(tmp_path / "base")
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
    adapt_at_start_rank(model)
    set_ranks(model, ranks)
    rankwise.save(model, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["alpha_pattern"] == {}
    base = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ours = rankwise.load(tmp_path / "adapter", base=str(tmp_path / "base"))
    with torch.no_grad():
        expected = model.eval()(**inputs()).logits
        torch.testing.assert_close(theirs(**inputs()).logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(**inputs()).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_state_dict_brings_its_ranks():
    first, second = tiny.classifier("bert"), tiny.classifier("bert")
    adapt_at_start_rank(first)
    adapt_at_start_rank(second)
    set_ranks(first, (3, 0, 1, 5))
    second.load_state_dict(first.state_dict())
    assert [x.rank for x in lora_layers(second).values()] == [3, 0, 1, 5] * 3 + [3]
    torch.testing.assert_close(second(**inputs()).logits, first(**inputs()).logits)


@pytest.mark.slow
def test_fit_finds_ranks_and_says_what_it_decided():
    model = tiny.classifier("bert")
    model.config.id2label = {0: "negative", 1: "positive"}
    rankwise.adapt(model)
    result = rankwise.fit(
        model, tiny.tokenizer(), tiny.reviews(600), options=replace(OPTIONS, lr=0.005), max_length=64
    )
    assert result.decisions
    assert "60 training rows decide them" in result.notes[-1]
    for decision in result.decisions:
        assert str(decision).startswith(f"step {decision.step}: ")
        assert type(decision).from_json(json.loads(json.dumps(decision.to_json()))) == decision


# ── Looking at it later ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_map_has_a_row_a_kind_and_a_column_a_layer():
    ranks = {
        f"bert.layer.{i}.self.{kind}": i + shift for i in range(3) for kind, shift in (("q", 0), ("v", 9))
    }
    assert draw(ranks) == ["layer  0  1  2", "q      ·  1  2", "v      9 10 11"]


def test_kinds_that_a_layer_has_twice_are_told_apart():
    ranks = {f"m.{i}.{part}.dense": 1 for i in range(2) for part in ("attention", "output")}
    assert [line.split()[0] for line in draw(ranks)] == ["layer", "m.attention.dense", "m.output.dense"]


def test_a_peft_adapter_is_inspected_by_its_energy(tmp_path):
    tiny.model_folder(tmp_path / "base")
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
    adapt(model, 4)
    values = torch.tensor([3.0, 1.0, 0.0, 0.0])
    for layer in lora_layers(model).values():
        A, B = torch.linalg.qr(torch.randn(32, 4)).Q.t(), torch.linalg.qr(torch.randn(32, 4)).Q
        mix = torch.randn(4, 4) + 3 * torch.eye(4)  # the components as stored aren't the singular ones
        layer.resize(mix @ A, B @ torch.diag(values) @ torch.linalg.inv(mix))
    rankwise.save(model, tmp_path / "adapter")
    found = inspect.inspect(tmp_path / "adapter")
    assert found["mean_rank"] == 4
    assert found["adapter_params"] == 4 * 4 * 64
    for path in found["rank"]:
        assert found["energy"][path] == pytest.approx([0.9, 0.1, 0.0, 0.0], abs=1e-5)
        assert found["effective_rank"][path] == pytest.approx(
            np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)), rel=1e-3
        )
    assert found["size_at_energy"]["0.99"] == {"components": 8, "adapter_params": 8 * 64}
    assert found["decisions"] == []
    assert any("rankwise compress" in line for line in inspect.describe(found))


@pytest.mark.slow
def test_compressing_removes_components_that_change_nothing(tmp_path):
    """Trained at rank 4, then padded to 16 with components that change nothing."""
    tiny.model_folder(tmp_path / "base")
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
    model.config.id2label = {0: "negative", 1: "positive"}
    model.config.label2id = {"negative": 0, "positive": 1}
    adapt(model, 2)
    rankwise.fit(
        model, tiny.tokenizer(), tiny.reviews(600), options=replace(OPTIONS, lr=0.005), max_length=64
    )
    for layer in lora_layers(model).values():
        A, B = layer.lora_A.detach(), layer.lora_B.detach()
        layer.resize(torch.cat([A, torch.randn(14, 32)]), torch.cat([B, torch.zeros(32, 14)], dim=1))
    rankwise.save(model, tmp_path / "adapter", base_model=str(tmp_path / "base"))
    trained = predict.open_trained(tmp_path / "adapter")
    reviews = tiny.reviews(400, seed=5)
    labels = np.array([r["label"] == "positive" for r in reviews], dtype=np.int64)
    rows = Rows(text=[r["text"] for r in reviews], text_pair=None, labels=labels, idx=np.arange(400))
    result = compress.compress(trained, rows, tmp_path / "smaller")
    assert sum(result["rank"].values()) <= 8
    assert result["adapter_params"] < 0.25 * result["adapter_params_before"]
    sizes = [point["components"] for point in result["curve"]]
    assert sizes == sorted(sizes, reverse=True)
    history = inspect.inspect(tmp_path / "smaller")["decisions"]
    assert [line["text"].partition(":")[0] for line in history] == ["compress"] * len(sizes)
    assert [line for line in history if line["accepted"]]
    smaller = rankwise.load(tmp_path / "smaller")
    whole = rankwise.load(tmp_path / "adapter")
    scores = [
        rankwise.evaluate(m, tiny.tokenizer(), reviews, max_length=64)["accuracy"] for m in (whole, smaller)
    ]
    assert scores[1] >= scores[0] - 0.02


# ── In other people's loops ───────────────────────────────────────────────────────────────────────────────────────────────


def trainer(tmp_path, callback):
    model = tiny.classifier("bert")
    rankwise.adapt(model, prefer="size")
    tokenizer = tiny.tokenizer()
    rows = [
        {**tokenizer(r["text"], return_token_type_ids=True), "labels": int(r["label"] == "positive")}
        for r in tiny.reviews(600)
    ]
    arguments = hf.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=260,
        per_device_train_batch_size=8,
        learning_rate=0.005,
        save_steps=130,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
    )
    callback = callback(rows[500:])
    return (
        hf.Trainer(
            model,
            arguments,
            train_dataset=rows[:500],
            data_collator=hf.DataCollatorWithPadding(tokenizer),
            callbacks=[callback],
        ),
        callback,
    )


@pytest.mark.slow
def test_ranks_change_in_a_trainer_script_and_a_checkpoint_resumes(tmp_path):
    whole, callback = trainer(tmp_path / "whole", rankwise.RankCallback)
    whole.train()
    accepted = [d for d in callback.decisions if d.accepted]
    assert accepted
    assert {104, 208} <= {d.step for d in callback.decisions}  # before and after the checkpoint
    ranks = callback.controller.ranks
    assert sum(ranks.values()) < 16 * len(ranks)
    resumed, again = trainer(tmp_path / "whole", rankwise.RankCallback)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-130"))
    assert [d.to_json() for d in again.decisions] == [d.to_json() for d in callback.decisions]
    assert again.controller.ranks == ranks
    expected = dict(whole.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], msg=name)
    rankwise.save(resumed.model, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
