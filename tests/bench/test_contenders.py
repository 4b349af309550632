"""Each contender trains what its name says: ours, ours without an optimization, the baselines, and the lower bound."""

import numpy as np
import pytest
import torch

from rankwise.bench import architectures
from rankwise.bench.ablation import DISABLE
from rankwise.bench.config import BenchConfig
from rankwise.bench.contenders import ABLATIONS, CONTENDERS, TRL_FULL, TRL_LORA
from rankwise.bench.lower_bound import products
from rankwise.bench.measurement import resolve
from rankwise.bench.worker import make_schedule
from rankwise.engine import attention, autotune, dropout, packed_mode, packing, training
from rankwise.lora import layer as lora_layer


def test_the_lower_bound_has_the_products_of_a_lora_step(tiny_roberta):
    model = architectures.build(BenchConfig(random_weights=tiny_roberta), dtype=torch.float32)
    first, second, head = (found := products(model))[:6], found[6:12], found[12:]
    assert [tuple(p.weight.shape) for p in first] == [(32, 32)] * 4 + [(64, 32), (32, 64)]
    assert [p.adapted for p in first] == [True, False, True, False, False, False]
    # Nothing is trained below the first query, key and value; below everything else something is.
    assert [p.needs_dx for p in first] == [False] * 3 + [True] * 3
    assert all(p.needs_dx for p in second + head)
    assert [p.trained for p in found] == [False] * 12 + [True] * 2
    assert [p.applied_to for p in found] == ["tokens"] * 12 + ["rows"] * 2


@pytest.mark.parametrize("name", ["rankwise lora", "rankwise lora padded"])
def test_our_lora_trains_adapters_and_head_and_its_loss_falls(train_contender, name):
    trained = train_contender(name)
    assert trained.loss_after < trained.loss_before - 0.001
    moved = trained.moved()
    assert {n for n in trained.first if "lora_" in n} <= moved
    assert all("lora_" in n or n.startswith("classifier.") for n in moved)
    assert trained.runner.compute.padding == ("longest" if name.endswith("padded") else "packed")


PATCHED = [
    (packed_mode, "attend"), (attention, "keep_mask"), (dropout, "keep_mask"), (lora_layer.LoRALinear, "forward"),
    (packing.PackedBatch, "fill"), (training, "Update"), (autotune, "fastest"),
]  # fmt: skip


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_our_lora_without_an_optimization_trains_and_really_lacks_it(train_contender, ablation, monkeypatch):
    whole = {(module, attribute): getattr(module, attribute) for module, attribute in PATCHED}
    for (module, attribute), value in whole.items():
        monkeypatch.setattr(module, attribute, value)  # so that it is put back
    trained = train_contender(f"without {ablation}", epochs=8)
    assert trained.loss_after < trained.loss_before - 0.0003
    assert {n for n in trained.first if "lora_" in n} <= trained.moved()
    replaced = [where for where, value in whole.items() if getattr(*where) is not value]
    assert bool(replaced) == (ablation in DISABLE)
    assert (trained.runner.compute.padding == "longest") == (ablation == "packing")


def test_every_ablation_is_a_contender():
    assert [f"without {name}" for name in ABLATIONS] == [n for n in CONTENDERS if n.startswith("without ")]
    assert set(ABLATIONS) - set(DISABLE) == {"packing", "bfloat16 base"}


def test_our_full_fine_tuning_trains_every_weight_and_its_loss_falls(train_contender):
    trained = train_contender("rankwise full")
    assert trained.loss_after < trained.loss_before - 0.001
    # A key's bias has no gradient.
    assert {n for n in trained.first if not n.endswith("key.bias")} <= trained.moved()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["peft lora sdpa", "peft lora eager", "peft lora pad128", "trainer full"])
def test_the_baselines_learn_too(train_contender, name):
    trained = train_contender(name)
    assert trained.loss_after < trained.loss_before - 0.001
    moved = trained.moved()
    if name == "trainer full":
        assert {n for n in trained.first if not n.endswith("key.bias")} <= moved
    else:
        assert {n for n in trained.first if "lora_" in n} <= moved
        assert all("lora_" in n or "modules_to_save" in n for n in moved)


@pytest.mark.slow
def test_our_padded_contender_has_the_batches_of_the_baselines(tiny_roberta, build_runner):
    config = resolve(
        BenchConfig(random_weights=tiny_roberta, batch_size=8, rows=64, repeats=2, lengths="qnli", dtype="float32")
    )  # fmt: skip
    ours, baseline = (
        make_schedule(build_runner(name, config), config)
        for name in ("rankwise lora padded", "peft lora sdpa")
    )
    np.testing.assert_array_equal(ours.rows.input_ids, baseline.rows.input_ids)
    assert [b.tolist() for b in ours.batches] == [b.tolist() for b in baseline.batches]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["peft lora sdpa", "peft lora eager", "peft lora pad128"])
def test_peft_baselines_train_their_adapters_on_the_padding_they_are_named_for(
    tiny_roberta, build_runner, name
):
    config = resolve(
        BenchConfig(random_weights=tiny_roberta, batch_size=8, rows=32, repeats=1, lengths="sst2", dtype="bfloat16")
    )  # fmt: skip
    runner = build_runner(name, config)
    schedule = make_schedule(runner, config)
    widths, layers = [], [m for n, m in runner.model.named_modules() if n.endswith("lora_B.default")]
    runner.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    runner.train(schedule.rows, schedule.batches, lambda: None)
    assert len(layers) == 4
    assert all(layer.weight.abs().max() > 0 for layer in layers)
    longest = [int(schedule.rows.lengths[batch].max()) for batch in schedule.batches]
    if name.endswith("128"):
        assert widths == [128] * len(longest)
    else:
        assert widths == longest
        assert runner.model.config._attn_implementation == name.split()[-1]


# ── Language models ───────────────────────────────────────────────────────────────────────────

OURS = ("rankwise lora", "rankwise lora lean", "rankwise adaptive", "rankwise full", "rankwise lora padded")


@pytest.mark.parametrize("name", OURS)
def test_ours_trains_a_language_model_and_leaves_its_head_frozen(train_language_model, name):
    trained = train_language_model(name)
    assert trained.loss_after < trained.loss_before - 0.0003
    moved = trained.moved()
    if name.endswith("full"):
        assert moved == trained.first.keys()
    else:
        assert {n for n in trained.first if "lora_" in n} == moved
    assert trained.runner.compute.padding == ("longest" if name.endswith("padded") else "packed")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRL_LORA + TRL_FULL)
def test_trl_learns_from_the_same_tokens(train_language_model, name):
    pytest.importorskip("trl")
    trained = train_language_model(name)
    assert trained.loss_after < trained.loss_before - 0.0003
    adapters = {n for n in trained.first if "lora_" in n}
    assert trained.moved() == (adapters or trained.first.keys())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["trl lora", "trl lora padding-free"])
def test_trl_computes_the_loss_that_we_compute(language_config, build_runner, name):
    pytest.importorskip("trl")
    config = language_config
    ours, theirs = (build_runner(one, config) for one in ("rankwise lora", name))
    schedule = make_schedule(theirs, config)
    batch, found = schedule.repeats[0][0], []
    theirs.model.register_forward_hook(lambda module, inputs, output: found.append(output.loss.item()))
    theirs.train(schedule.rows, [batch], lambda: None)
    with torch.no_grad(), ours.compute.running(ours.model):
        (packed,) = ours.compute.batches(ours.model, schedule.rows, batch)
        loss = torch.nn.functional.cross_entropy(ours.compute.logits(ours.model, packed), packed.labels)
    assert found == [pytest.approx(loss.item(), rel=1e-4)]


def test_a_language_models_head_counts_once_a_label_in_the_lower_bound(language_config):
    model = architectures.build(language_config, dtype=torch.float32)
    found = products(model)
    assert [p.applied_to for p in found] == ["tokens"] * 14 + ["labels"]
    assert not any(p.trained for p in found)
    assert [p.needs_dx for p in found] == [False] * 3 + [True] * 12
