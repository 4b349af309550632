"""Runs that start from what an earlier run trained."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from rankwise.adapters import peft_format
from rankwise.adapters.load import load
from rankwise.adapters.predict import evaluate, open_trained
from rankwise.config import LoraOptions, ModelOptions, RunConfig, TableOptions, TrainOptions
from rankwise.config_json import to_json
from rankwise.errors import RankwiseError
from rankwise.lora.inject import find_targets, raise_to_start_rank, trained_beside
from rankwise.lora.layer import lora_layers
from rankwise.run_folder import RunFolder
from rankwise.runs.config import CompareConfig
from rankwise.runs.grid import run_grid
from rankwise.runs.prepare import prepare
from rankwise.runs.run import execute


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(tiny.model_folder(tmp_path_factory.mktemp("models") / "tiny", "roberta"))


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    rows = tiny.reviews(64)
    other = {"positive": "good", "negative": "bad"}
    for name, some in (("same", rows), ("new", [{**row, "label": other[row["label"]]} for row in rows])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


def config(
    tables: Path, table: str, base: str | None, *, method: str = "lora", start: Path | None = None, **lora
):
    return RunConfig(
        method=method,
        table=TableOptions(train_file=(tables / f"{table}.jsonl",)),
        model=ModelOptions(model=base, from_adapter=start, dtype="float32", threads=1),
        lora=LoraOptions(**lora),
        train=TrainOptions(epochs=2, batch_size=8, lr=5e-3),
    )


def prepared(folder: Path, asked: RunConfig):
    run = RunFolder(folder)
    run.write_request(to_json(asked))
    return prepare(run)


def trained(folder: Path, asked: RunConfig) -> Path:
    run = RunFolder(folder)
    run.write_request(to_json(asked))
    execute(run, lambda event: None)
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory, tables, base) -> Path:
    """An adapter of rank 3 trained on labels `negative` and `positive`."""
    return trained(tmp_path_factory.mktemp("runs") / "first", config(tables, "same", base, rank=3))


def state(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_the_same_labels_continue_with_adapter_and_head(first, tables, tmp_path):
    run = prepared(tmp_path / "second", config(tables, "same", None, start=first))
    expected, here = state(load(first)), state(run.model)
    assert expected.keys() == here.keys()
    assert all(torch.equal(here[name], value) for name, value in expected.items())
    assert {layer.rank for layer in lora_layers(run.model).values()} == {3}
    assert any("its head included" in note for note in run.notes)
    assert run.config.model.model == peft_format.read(first).base_model


def test_new_labels_get_the_head_that_a_fresh_run_begins_with(first, tables, base, tmp_path):
    run = prepared(tmp_path / "second", config(tables, "new", None, start=first))
    fresh = state(prepared(tmp_path / "fresh", config(tables, "new", base)).model)
    here, before = state(run.model), state(load(first))
    heads = [name for name in here if name.startswith("classifier.")]
    assert heads
    assert all(torch.equal(here[name], fresh[name]) for name in heads)
    assert not torch.equal(here["classifier.out_proj.weight"], before["classifier.out_proj.weight"])
    assert all(torch.equal(here[name], before[name]) for name in here if name not in heads)
    trainable = {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert set(heads) <= trainable
    assert any("new head" in note for note in run.notes)


def test_adaptive_rank_starts_generous_again_in_every_linear_layer(first):
    model, ids = load(first).eval(), torch.randint(3, 15, (2, 6))
    before, head = model(ids).logits, trained_beside(model)
    raise_to_start_rank(model)
    layers = lora_layers(model)
    assert set(layers) == set(find_targets(model, ["all-linear"]))
    assert {layer.rank for layer in layers.values()} == {16}
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-6)
    assert all(layer.lora_A.requires_grad and layer.lora_B.requires_grad for layer in layers.values())
    assert trained_beside(model) == head


def test_what_started_from_an_adapter_is_a_whole_adapter_again(first, tables, tmp_path):
    second = trained(tmp_path / "second", config(tables, "new", None, start=first))
    trained_on = open_trained(second)
    assert trained_on.task.label_names == ("bad", "good")
    scores = evaluate(trained_on)
    stored = RunFolder(second).read_result()["scores"]["validation"]
    assert scores["loss"] == pytest.approx(stored["loss"], abs=1e-6)


def test_full_fine_tuning_starts_from_a_merged_adapter_or_a_whole_model(first, tables, base, tmp_path):
    ids = torch.randint(3, 15, (2, 6))
    run = prepared(tmp_path / "merged", config(tables, "same", None, method="full", start=first))
    torch.testing.assert_close(run.model.eval()(ids).logits, load(first)(ids).logits, rtol=1e-4, atol=1e-5)
    assert all(p.requires_grad for p in run.model.parameters())

    whole = trained(tmp_path / "whole", config(tables, "same", base, method="full"))
    run = prepared(tmp_path / "on", config(tables, "same", None, method="full", start=whole))
    assert torch.equal(run.model.eval()(ids).logits, load(whole)(ids).logits)
    assert run.source.name == base
    run = prepared(tmp_path / "new", config(tables, "new", None, method="full", start=whole))
    fresh = state(prepared(tmp_path / "fresh", config(tables, "new", base)).model)
    here, before = state(run.model), state(load(whole))
    assert all(
        torch.equal(value, fresh[name] if name.startswith("classifier.") else before[name])
        for name, value in here.items()
    )


def test_another_rank_than_the_adapters_is_refused(first, tables, tmp_path):
    with pytest.raises(RankwiseError, match="has its own rank.*rank 3 on 4 layers"):
        prepared(tmp_path / "second", config(tables, "same", None, start=first, rank=5))
    prepared(tmp_path / "third", config(tables, "same", None, start=first, rank=3))


def test_the_same_rank_and_alpha_as_the_adapters_may_be_asked_for_again(tables, base, tmp_path):
    """With alpha/√2 neither the scale nor the alpha that is stored for it has an end, and the file has nine digits."""
    same = {"rank": 2, "alpha": 5.66, "rslora": True}
    first = trained(tmp_path / "first", config(tables, "same", base, **same))
    prepared(tmp_path / "second", config(tables, "same", None, start=first, **same))
    with pytest.raises(RankwiseError, match="has its own rank, alpha"):
        prepared(tmp_path / "third", config(tables, "same", None, start=first, **{**same, "alpha": 5.67}))


def test_another_base_model_is_refused(first, tables, tmp_path):
    other = tiny.model_folder(tmp_path / "other", "bert")
    with pytest.raises(RankwiseError, match="another base model"):
        prepared(tmp_path / "second", config(tables, "same", str(other), start=first))


def test_each_run_of_a_grid_starts_from_its_own_adapter(first, tmp_path):
    for seed in (0, 1):
        (tmp_path / f"mnli.lora-rank-4.s{seed}").mkdir()
        (tmp_path / f"mnli.lora-rank-4.s{seed}" / peft_format.CONFIG).write_text("{}")
    grid = CompareConfig(
        tasks=("rte",),
        methods=("lora:rank=4",),
        seeds=2,
        out=tmp_path / "out",
        model=ModelOptions(from_adapter=tmp_path / "mnli.{method}.s{seed}"),
    )
    run_grid(grid, lambda name, event: None, command=lambda folder: ["false"])
    asked = {
        name: RunFolder(tmp_path / "out" / name).read_run()["requested"]["model"]["from_adapter"]
        for name in ("rte.lora-rank-4.s0", "rte.lora-rank-4.s1")
    }
    assert asked == {
        "rte.lora-rank-4.s0": str(tmp_path / "mnli.lora-rank-4.s0"),
        "rte.lora-rank-4.s1": str(tmp_path / "mnli.lora-rank-4.s1"),
    }
    missing = replace(grid, seeds=3)
    with pytest.raises(RankwiseError, match=r"mnli.lora-rank-4.s2 is no folder.*`from_adapter=`"):
        run_grid(missing, lambda name, event: None, command=lambda folder: ["false"])


def test_a_folder_without_an_adapter_is_refused(tables, base, tmp_path):
    with pytest.raises(RankwiseError, match="holds no adapter.*`from_adapter=`"):
        prepared(tmp_path / "a", config(tables, "same", base, start=tmp_path))
    with pytest.raises(RankwiseError, match="whole model, and lora starts from an adapter.*`model=`"):
        prepared(tmp_path / "b", config(tables, "same", base, start=Path(base)))
    for method in ("head", "peft:dora"):
        with pytest.raises(RankwiseError, match="can't start from an adapter.*full, lora"):
            prepared(tmp_path / "c", config(tables, "same", base, method=method, start=tmp_path))
