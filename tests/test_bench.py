"""The referee of `rankwise bench`, its arithmetic, its data, and whether peers and floor do what their names say."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rankwise.bench import architectures, lengths, results
from rankwise.bench.config import BenchConfig
from rankwise.bench.contenders import CONTENDERS
from rankwise.bench.coordinator import Record, compete
from rankwise.bench.floor import products
from rankwise.bench.measurement import resolve
from rankwise.bench.worker import heaviest, make_plan
from rankwise.errors import RankwiseError
from tiny import CONFIGS

ACTOR = """
import json, os, sys
name = json.loads(sys.stdin.readline())["contender"]
def note(word): open(sys.argv[1], "a").write(f"{name} {word}\\n")
note("starts"); print("{}", flush=True)
for turn, line in enumerate(sys.stdin):
    if name == "b" and turn == int(sys.argv[2]): sys.exit("out of\\nmemory")
    note("computes"); print(json.dumps({"turn": turn, "seconds": 0.1}), flush=True); note("waits")
"""


def _actors(tmp_path: Path, fails_at: int = -1):
    log = tmp_path / "log"
    return log, lambda name: [sys.executable, "-c", ACTOR, str(log), str(fails_at)]


@pytest.fixture
def tiny_roberta(tmp_path):
    CONFIGS["roberta"].save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def test_contenders_take_turns_each_beginning_a_round(tmp_path):
    log, command = _actors(tmp_path)
    told = []
    records = compete("abc", {}, 3, command=command, on_progress=told.append)
    assert [record.repeats for record in records] == [[{"turn": t, "seconds": 0.1} for t in range(3)]] * 3
    assert [record.memory["turn"] for record in records] == [3, 3, 3]
    turns = [line[0] for line in log.read_text().splitlines() if line.endswith("computes")]
    assert "".join(turns) == "abc" + "bca" + "cab" + "abc"
    assert (told[-1].done, told[-1].total, told[-1].seconds_left) == (15, 15, 0)
    first_known = next(p for p in told if p.seconds_left is not None)
    assert first_known.seconds_left == pytest.approx(6 * 0.1)


def test_a_contender_that_fails_drops_out_with_its_last_words_and_the_others_go_on(tmp_path):
    _, command = _actors(tmp_path, fails_at=1)
    a, b = compete("ab", {}, 3, command=command)
    assert a.failure is None
    assert len(a.repeats) == 3
    assert b.failure == "memory"
    assert len(b.repeats) == 1


def _record(name, rates, memory=100.0):
    repeats = [
        {"rows_per_second": r, "tokens_per_second": 10 * r, "step_seconds": {"median": 1 / r}} for r in rates
    ]
    return Record(name, repeats, {"peak_memory_mb": memory, "peak_rss_mb": None})


def test_ratios_are_paired_by_repeat_and_taken_against_the_better_peer():
    records = [
        _record("rankwise lora", [20, 30, 60], memory=50),
        _record("peft lora sdpa", [10, 10, 20], memory=200),
        _record("peft lora eager", [9, 9, 100]),
        _record("floor", [40, 45, 60]),
    ]
    ratios = results.ratios(records)
    assert ratios["lora_vs_peft_best"] == results.Spread(3, 2, 3)
    assert ratios["step_vs_floor"] == results.Spread(1.5, 1, 2)
    assert ratios.keys() == {"lora_vs_peft_best", "step_vs_floor"}
    assert results.memory_ratios(records) == {"peft_sdpa_vs_lora": 4, "peft_eager_vs_lora": 2}


def test_a_contender_that_failed_is_in_no_ratio():
    gone = _record("peft lora sdpa", [1000])
    gone.failure = "out of memory"
    records = [_record("rankwise lora", [20]), gone, _record("peft lora eager", [10])]
    assert results.ratios(records)["lora_vs_peft_best"].median == 2
    assert [row["name"] for row in results.rows(records)] == ["rankwise lora", "peft lora eager"]


@pytest.mark.parametrize(
    ("task", "rows", "mean"),
    [("sst2", 67_349, 13.3), ("rte", 2_490, 71.2), ("mrpc", 3_668, 53.2), ("qnli", 4_463, 51.2), ("qqp", 17_000, 30.7)],
)  # fmt: skip
def test_shipped_histograms_have_every_row_of_their_task(task, rows, mean):
    counts = lengths.histogram(task)
    assert sum(counts.values()) == rows
    assert sum(n * c for n, c in counts.items()) / rows == pytest.approx(mean, abs=0.06)


def test_drawn_lengths_follow_the_histogram():
    drawn = lengths.draw("qnli", 100_000, np.random.default_rng(0))
    whole = lengths.epoch("qnli", np.random.default_rng(0))
    assert sorted(whole) == sorted(n for n, c in lengths.histogram("qnli").items() for _ in range(c))
    assert np.abs(np.quantile(drawn, [0.1, 0.5, 0.9]) - np.quantile(whole, [0.1, 0.5, 0.9])).max() <= 1
    assert set(lengths.draw("77", 5, np.random.default_rng(0))) == {77}


def test_random_rows_never_hold_the_padding_token():
    config = CONFIGS["roberta"]
    rows = lengths.random_rows(np.array([3, 5000, 1]), config, np.random.default_rng(0))
    assert list(rows.lengths) == [3, 5000, 1]
    assert config.pad_token_id is not None
    assert set(rows.input_ids) == set(range(config.vocab_size)) - {config.pad_token_id}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("minilm", 22_713_216 + 2 * 385),
        ("bert-base-uncased", 109_483_778),
        ("roberta-base", 124_647_170),
        ("FacebookAI/roberta-large", 355_361_794),
        ("distilbert-base-uncased", 66_955_010),
        ("electra-base-discriminator", 109_483_778),
        ("deberta-v3-base", 184_423_682),
        ("modernbert-base", 149_606_402),
        ("gpt2", 124_439_808 + 2 * 768),
        ("opt-125m", 125_239_296 + 2 * 768),
        ("Qwen/Qwen2.5-0.5B", 494_032_768 + 2 * 896),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248 - 128_256 * 4096 + 2 * 4096),
    ],
)
def test_shipped_architectures_have_the_published_number_of_parameters(name, parameters):
    config = architectures.model_config(BenchConfig(random_weights=name))
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"random_weights": "roberta-bse"}, "roberta-base"),
        ({"lengths": "sst3"}, "sst2"),
        ({"contenders": ("peft lora sdp",)}, "peft lora sdpa"),
        ({"repeats": 0}, "at least 1"),
    ],
)
def test_what_is_misspelt_is_refused_before_anything_starts(settings, says):
    with pytest.raises(RankwiseError, match=says):
        resolve(BenchConfig(**settings))


def test_every_contender_gets_the_same_rows_in_each_repeat(tiny_roberta):
    config = resolve(
        BenchConfig(random_weights=tiny_roberta, rows=30, repeats=2, batch_size=8, lengths="rte")
    )

    class InOrder:
        def order(self, lengths, seed):
            return [np.arange(i, min(i + 8, len(lengths))) for i in range(0, len(lengths), 8)]

        def train(self, rows, batches, after_step): ...

    class Shuffled(InOrder):
        def order(self, lengths, seed):
            order = np.random.default_rng(seed).permutation(len(lengths))
            return [order[batch] for batch in InOrder.order(self, lengths, seed)]

    one, other = make_plan(InOrder(), config), make_plan(Shuffled(), config)
    np.testing.assert_array_equal(one.rows.input_ids, other.rows.input_ids)
    assert [len(repeat) for repeat in one.repeats] == [4, 4]
    for a, b in zip(one.repeats, other.repeats, strict=True):
        assert sorted(np.concatenate(a)) == sorted(np.concatenate(b))
    assert one.rows.lengths.max() <= 64  # the model's limit


def test_memory_is_taken_over_the_batches_in_which_it_can_peak():
    row_lengths = np.array([9, 9, 9, 9, 20, 1, 1, 1, 5, 5, 5, 5, 1, 1, 1, 1])
    batches = [np.arange(i, i + 4) for i in range(0, 16, 4)]
    assert {batch[0] for batch in heaviest(batches, row_lengths)} == {0, 4}


def test_the_floor_has_the_products_of_a_lora_step(tiny_roberta):
    model = architectures.build(BenchConfig(random_weights=tiny_roberta), dtype=torch.float32)
    first, second, head = (found := products(model))[:6], found[6:12], found[12:]
    assert [tuple(p.weight.shape) for p in first] == [(32, 32)] * 4 + [(64, 32), (32, 64)]
    assert [p.adapted for p in first] == [True, False, True, False, False, False]
    # Nothing is trained below the first query, key and value; below everything else something is.
    assert [p.needs_dx for p in first] == [False] * 3 + [True] * 3
    assert all(p.needs_dx for p in second + head)
    assert [p.trained for p in found] == [False] * 12 + [True] * 2
    assert [p.per_token for p in found] == [True] * 12 + [False] * 2


def _enter(name: str, config: BenchConfig):
    from importlib import import_module

    return import_module(CONTENDERS[name].module).enter(config, **CONTENDERS[name].settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["peft lora sdpa", "peft lora eager", "peft lora pad128"])
def test_peft_peers_train_their_adapters_on_the_padding_they_are_named_for(tiny_roberta, name):
    settings = {"batch_size": 8, "rows": 32, "repeats": 1, "lengths": "sst2", "dtype": "bfloat16"}
    config = resolve(BenchConfig(random_weights=tiny_roberta, **settings))
    runner = _enter(name, config)
    plan = make_plan(runner, config)
    widths, layers = [], [m for n, m in runner.model.named_modules() if n.endswith("lora_B.default")]
    runner.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    runner.train(plan.rows, plan.batches, lambda: None)
    assert len(layers) == 4
    assert all(layer.weight.abs().max() > 0 for layer in layers)
    longest = [int(plan.rows.lengths[batch].max()) for batch in plan.batches]
    if name.endswith("128"):
        assert widths == [128] * len(longest)
    else:
        assert widths == longest
        assert runner.model.config._attn_implementation == name.split()[-1]
