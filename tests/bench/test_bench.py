"""The referee of `rankwise bench`, its arithmetic, its data, and whether peers and floor do what their names say."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rankwise.bench import architectures, lengths, results
from rankwise.bench.ablation import PARTS
from rankwise.bench.config import BenchConfig
from rankwise.bench.contenders import CONTENDERS, MEMORY_RATIOS, RATIOS
from rankwise.bench.coordinator import Record, compete
from rankwise.bench.lower_bound import products
from rankwise.bench.measurement import resolve
from rankwise.bench.worker import heaviest, make_plan
from rankwise.cli import main
from rankwise.config import to_json
from rankwise.engine import attention, autotune, dropout, packing, training
from rankwise.engine.measure import KINDS
from rankwise.engine.packing import pad
from rankwise.errors import RankwiseError
from rankwise.lora import layer as lora_layer
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
    return Record(
        name,
        repeats,
        {
            "peak_memory_mb": memory,
            "memory_by_kind_mb": {"total": memory, **dict.fromkeys(KINDS, memory / 6)},
            "peak_rss_mb": None,
        },
    )


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


def test_variants_take_part_only_when_they_are_named(tiny_roberta):
    default = resolve(BenchConfig(random_weights=tiny_roberta)).contenders
    named = {
        "rankwise lora",
        "rankwise full",
        "peft lora sdpa",
        "peft lora eager",
        "peft lora pad128",
        "trainer full",
        "floor",
    }
    assert named <= set(default)
    assert "rankwise lora padded" in CONTENDERS
    assert "rankwise lora padded" not in default
    asked = BenchConfig(random_weights=tiny_roberta, contenders=("rankwise lora padded", "floor", "floor"))
    assert resolve(asked).contenders == ("rankwise lora padded", "floor")


def test_every_ratio_compares_rows_of_the_table():
    names = {*CONTENDERS, "rankwise lora lean"}
    assert {first for first, _ in RATIOS.values()} <= names
    assert {second for _, seconds in RATIOS.values() for second in seconds} <= names
    assert {name for pair in MEMORY_RATIOS.values() for name in pair} <= names


def _result():
    records = [
        _record("rankwise lora", [20, 30]),
        _record("peft lora sdpa", [10, 10]),
        Record("floor", failure="[1] no"),
    ]
    spreads = results.ratios(records)
    return {
        "title": "a model",
        "rows": results.rows(records),
        "ratios": {name: spread.median for name, spread in spreads.items()},
        "ratio_spreads": {name: vars(spread) for name, spread in spreads.items()},
        "memory_ratios": results.memory_ratios(records),
        "failed": {record.name: record.failure for record in records if record.failure},
    }


def test_people_see_a_row_a_contender_why_one_dropped_out_and_the_ratios(capfd):
    results.show(_result(), sys.stdout)
    shown = capfd.readouterr().out
    lines = shown.splitlines()
    assert lines[0] == "a model"
    assert next(line for line in lines if line.startswith("rankwise lora")).split()[2:6] == [
        "25.0",
        "20.0",
        "–",
        "30.0",
    ]
    assert "floor dropped out: [1] no" in shown
    assert next(line for line in lines if line.startswith("lora_vs_peft_best")).split()[1] == "2.50×"
    assert "\x1b" not in shown, "no control characters outside a terminal"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--contenders", "rankwise lor"], "There is no contender 'rankwise lor'. Did you mean 'rankwise lora'?"),
        (["--random-weights", "roberta-bas"], "Did you mean 'roberta-base'?"),
        (["--model", "no/such/folder/here"], "There is no model 'no/such/folder/here'"),
        (["--random-weights", "roberta-base", "--lengths", "sst"], "Did you mean 'sst2'?"),
        (["--random-weights", "roberta-base", "--lengths", "513"], "takes 512 tokens at most; --lengths 513 is more."),
        (["--random-weights", "roberta-base", "--rows", "0"], "at least 1"),
        (["--random-weights", "roberta-base", "--threads", "-1"], "at least 1"),
    ],
)  # fmt: skip
def test_the_command_refuses_bad_input_in_one_sentence(arguments, says, capfd, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    out, error = capfd.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert error.count("\n") == 1
    assert says in error


def test_the_command_line_is_loaded_without_torch():
    check = "import sys, rankwise.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def _enter(name: str, config: BenchConfig):
    return import_module(CONTENDERS[name].module).enter(config, **CONTENDERS[name].settings)


def _loss(model, rows):
    """Mean cross-entropy of rows by Transformers' own padded call, dropout off."""
    batch = pad(rows, np.arange(len(rows)), model.config.pad_token_id)
    model.eval()
    with torch.no_grad():
        return float(model(**batch).loss)


def _train_for_a_while(name, tiny_roberta):
    """Trains contender `name` on 24 rows, over and over; its weights before, its runner, and its loss before and after."""
    settings = {"batch_size": 8, "rows": 24, "repeats": 1, "lengths": "rte", "dtype": "float32"}
    config = resolve(BenchConfig(random_weights=tiny_roberta, **settings))
    runner = _enter(name, config)
    plan = make_plan(runner, config, CONTENDERS[name].max_length)
    rows, steps = plan.rows.select(np.concatenate(plan.repeats[0])), []
    first = {n: p.detach().clone() for n, p in runner.model.named_parameters()}
    before = _loss(runner.model, rows)
    batches = [np.arange(i, i + 8) for i in range(0, 24, 8)] * 20
    runner.train(rows, batches, lambda: steps.append(1))
    assert len(steps) == len(batches)
    return runner, first, before, _loss(runner.model, rows)


def _moved(runner, first):
    return {n for n, p in runner.model.named_parameters() if not torch.equal(p.detach(), first[n])}


@pytest.mark.parametrize("name", ["rankwise lora", "rankwise lora padded"])
def test_our_lora_contenders_train_adapters_and_head_and_their_loss_falls(tiny_roberta, name):
    runner, first, before, after = _train_for_a_while(name, tiny_roberta)
    assert after < before - 0.001
    moved = _moved(runner, first)
    assert {n for n in first if "lora_" in n} <= moved
    assert all("lora_" in n or n.startswith("classifier.") for n in moved)
    assert runner.compute.padding == ("longest" if name.endswith("padded") else "packed")


PATCHED = [
    (attention, "attend"), (attention, "keep_mask"), (dropout, "keep_mask"), (lora_layer.LoRALinear, "forward"),
    (packing.PackedBatch, "fill"), (training, "Update"), (autotune, "fastest"),
]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name.startswith("without ")])
def test_our_lora_without_one_part_trains_as_well_and_really_lacks_it(tiny_roberta, name, monkeypatch):
    whole = {(module, attribute): getattr(module, attribute) for module, attribute in PATCHED}
    for (module, attribute), value in whole.items():
        monkeypatch.setattr(module, attribute, value)  # so that it is put back
    runner, first, before, after = _train_for_a_while(name, tiny_roberta)
    assert after < before - 0.001
    assert {n for n in first if "lora_" in n} <= _moved(runner, first)
    replaced = [where for where, value in whole.items() if getattr(*where) is not value]
    assert replaced or runner.compute.padding == "longest" or name == "without a bfloat16 base"


def test_every_part_that_can_be_left_out_is_a_contender():
    assert [f"without {part}" for part in PARTS] == [n for n in CONTENDERS if n.startswith("without ")]


def test_our_full_contender_trains_every_weight_and_its_loss_falls(tiny_roberta):
    runner, first, before, after = _train_for_a_while("rankwise full", tiny_roberta)
    assert after < before - 0.001
    assert {n for n in first if not n.endswith("key.bias")} <= _moved(
        runner, first
    )  # a key's bias has no gradient


@pytest.mark.slow
@pytest.mark.parametrize("name", ["peft lora sdpa", "peft lora eager", "peft lora pad128", "trainer full"])
def test_the_peers_learn_too(tiny_roberta, name):
    runner, first, before, after = _train_for_a_while(name, tiny_roberta)
    assert after < before - 0.001
    moved = _moved(runner, first)
    if name == "trainer full":
        assert {n for n in first if not n.endswith("key.bias")} <= moved
    else:
        assert {n for n in first if "lora_" in n} <= moved
        assert all("lora_" in n or "modules_to_save" in n for n in moved)


@pytest.mark.slow
def test_padded_like_the_peers_means_their_very_own_batches(tiny_roberta):
    settings = {"batch_size": 8, "rows": 64, "repeats": 2, "lengths": "qnli", "dtype": "float32"}
    config = resolve(BenchConfig(random_weights=tiny_roberta, **settings))
    ours, peers = (
        make_plan(_enter(name, config), config) for name in ("rankwise lora padded", "peft lora sdpa")
    )
    np.testing.assert_array_equal(ours.rows.input_ids, peers.rows.input_ids)
    assert [b.tolist() for b in ours.batches] == [b.tolist() for b in peers.batches]


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


def _worker(name, config):
    worker = subprocess.Popen(
        [sys.executable, "-m", "rankwise.bench.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    worker.stdin.write(json.dumps({"contender": name, "config": to_json(config)}) + "\n")
    worker.stdin.flush()
    return worker


@pytest.mark.slow
def test_a_contenders_process_says_one_line_a_turn_and_ends_after_the_last(tiny_roberta):
    settings = {"batch_size": 4, "rows": 8, "repeats": 2, "lengths": "sst2", "threads": 1}
    config = resolve(BenchConfig(random_weights=tiny_roberta, **settings))
    with _worker("rankwise lora", config) as worker:
        said = [json.loads(worker.stdout.readline())]
        for _ in range(config.repeats + 1):
            assert worker.poll() is None, "it waits for its turn"
            worker.stdin.write("go\n")
            worker.stdin.flush()
            said.append(json.loads(worker.stdout.readline()))
        assert worker.communicate()[0] == ""
        assert worker.returncode == 0
    ready, *repeats, memory = said
    assert ready == {"ready": True}
    for repeat in repeats:
        assert repeat.keys() == {"rows_per_second", "tokens_per_second", "step_seconds", "seconds"}
        assert repeat["rows_per_second"] * repeat["seconds"] == pytest.approx(8)
        assert (
            repeat["step_seconds"]["min"] <= repeat["step_seconds"]["median"] <= repeat["step_seconds"]["max"]
        )
    assert memory.keys() == {"peak_memory_mb", "memory_by_kind_mb", "peak_rss_mb"}
    assert memory["peak_memory_mb"] > 0


@pytest.mark.slow
def test_a_contenders_process_ends_when_nobody_is_left_to_tell(tiny_roberta):
    config = resolve(BenchConfig(random_weights=tiny_roberta, batch_size=4, rows=8, repeats=2, threads=1))
    with _worker("floor", config) as worker:
        assert json.loads(worker.stdout.readline()) == {"ready": True}
        worker.stdin.close()
        assert worker.wait(60) == 1


ROW = {
    "name",
    "rows_per_second",
    "tokens_per_second",
    "step_seconds",
    "peak_memory_mb",
    "memory_by_kind_mb",
    "peak_rss_mb",
}


@pytest.mark.slow
def test_the_command_prints_one_object_with_every_row_and_ratio(tiny_roberta):
    names = [
        "rankwise lora",
        "rankwise full",
        "rankwise lora padded",
        "peft lora sdpa",
        "peft lora eager",
        "trainer full",
        "floor",
    ]
    command = [
        sys.executable,
        "-m",
        "rankwise",
        "bench",
        "--json",
        "--random-weights",
        tiny_roberta,
        "--threads",
        "1",
    ]
    command += ["--rows", "16", "--repeats", "2", "--lengths", "rte", "--contenders", *names]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)  # one object and nothing else
    assert result["failed"] == {}
    assert [row["name"] for row in result["rows"]] == names
    for row in result["rows"]:
        assert row.keys() >= ROW
        speed = row["rows_per_second"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
        assert row["peak_memory_mb"] > 0
    ours = [
        "lora_vs_peft_best",
        "lora_padded_vs_peft_best",
        "lora_vs_full",
        "full_vs_trainer_full",
        "step_vs_floor",
    ]
    assert list(result["ratios"]) == ours
    for name, spread in result["ratio_spreads"].items():
        assert 0 < spread["min"] <= result["ratios"][name] <= spread["max"]
    assert result["memory_ratios"].keys() == {
        "trainer_full_vs_lora",
        "peft_sdpa_vs_lora",
        "peft_eager_vs_lora",
    }
    assert result["config"]["rows"] == 16
    assert f"[{7 * 4}/{7 * 4}] done" in ended.stderr
    assert "lora_vs_peft_best" in ended.stderr
