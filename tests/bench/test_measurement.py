"""A measurement: bad requests are refused before it starts, and the command prints its result."""

import subprocess
import sys
from dataclasses import replace

import pytest
import transformers as hf

from rankwise.bench import measurement
from rankwise.bench.config import BenchConfig
from rankwise.bench.contenders import CONTENDERS
from rankwise.bench.coordinator import Record
from rankwise.bench.measurement import resolve
from rankwise.cli import main
from rankwise.errors import RankwiseError


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"random_weights": "roberta-bse"}, "roberta-base"),
        ({"lengths": "sst3"}, "sst2"),
        ({"contenders": ("peft lora sdp",)}, "peft lora sdpa"),
        ({"repeats": 0}, "at least 1"),
        ({"processes": 0}, "at least 1"),
        (
            {"processes": 2, "contenders": ("peft lora sdpa",)},
            "None of the contenders trains in several processes",
        ),
        (
            {"problem": "generation", "contenders": ("peft lora sdpa",)},
            "'peft lora sdpa' doesn't take part in generation",
        ),
        ({"contenders": ("trl lora",)}, "'trl lora' doesn't take part in classification"),
        (
            {"problem": "generation", "random_weights": "smollm2", "lengths": "1"},
            "learns nothing from rows of one token",
        ),
        ({"problem": "generation", "random_weights": "roberta-base"}, "roberta-base is an encoder"),
    ],
)
def test_what_is_misspelt_is_refused_before_anything_starts(settings, says):
    with pytest.raises(RankwiseError, match=says):
        resolve(BenchConfig(**settings))


def test_optional_contenders_take_part_only_when_they_are_named(tiny_roberta):
    default = resolve(BenchConfig(random_weights=tiny_roberta)).contenders
    assert default == (
        "rankwise lora",
        "rankwise lora lean",
        "rankwise adaptive",
        "rankwise full",
        "peft lora sdpa",
        "peft lora eager",
        "peft lora pad128",
        "trainer full",
        "gemm lower bound",
    )
    assert "rankwise lora padded" in CONTENDERS
    named = ("rankwise lora padded", "gemm lower bound", "gemm lower bound")
    asked = BenchConfig(random_weights=tiny_roberta, contenders=named)
    assert resolve(asked).contenders == ("rankwise lora padded", "gemm lower bound")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--contenders", "rankwise lor"], "There is no contender 'rankwise lor'. Did you mean 'rankwise lora'?"),
        (["--random-weights", "roberta-bas"], "Did you mean 'roberta-base'?"),
        (["--model", "no/such/folder/here"], "There is no model 'no/such/folder/here'"),
        (["--random-weights", "roberta-base", "--lengths", "sst"], "Did you mean 'sst2'?"),
        (["--random-weights", "roberta-base", "--lengths", "513"], "takes at most 512 tokens per row; --lengths 513 is more."),
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
    check = (
        "import sys, rankwise.cli.commands; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.slow
def test_the_command_measures_real_contenders_and_prints_one_object(tiny_roberta, told):
    names = ["rankwise lora", "peft lora sdpa", "trainer full", "gemm lower bound"]
    result = told(
        "bench", "--random-weights", tiny_roberta, "--threads", 1, "--rows", 16, "--repeats", 2, "--lengths", "rte",
        "--contenders", *names,
    )  # fmt: skip
    assert result["failed"] == {}
    assert [row["name"] for row in result["rows"]] == names
    for row in result["rows"]:
        assert row.keys() == {
            "name",
            "rows_per_second",
            "tokens_per_second",
            "step_seconds",
            "peak_memory_mb",
            "memory_by_kind_mb",
            "peak_rss_mb",
            "operations",
        }
        speed = row["rows_per_second"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
        assert row["peak_memory_mb"] > 0
    assert list(result["ratios"]) == ["lora_vs_peft_best", "step_vs_lower_bound"]
    for name, spread in result["ratio_spreads"].items():
        assert 0 < spread["min"] <= result["ratios"][name] <= spread["max"]
    assert result["memory_ratios"].keys() == {"trainer_full_vs_lora", "peft_sdpa_vs_lora"}
    assert result["config"]["rows"] == 16


@pytest.mark.slow
def test_the_command_measures_several_processes_beside_one(tiny_roberta, told):
    result = told(
        "bench", "--random-weights", tiny_roberta, "--threads", 2, "--rows", 16, "--repeats", 2, "--lengths", "rte",
        "--contenders", "rankwise full", "rankwise adaptive", "--processes", 2, "--dtype", "float32",
    )  # fmt: skip
    one, two, *adaptive = result["rows"]
    assert (one["name"], two["name"]) == ("rankwise full", "rankwise full in 2 processes")
    assert [row.get("processes") for row in adaptive] == [None, 2]
    model = hf.AutoModelForSequenceClassification.from_config(hf.AutoConfig.from_pretrained(tiny_roberta))
    trained = [p for p in model.parameters() if p.requires_grad]
    numbers = sum(p.numel() for p in trained) + len(trained) + 2  # who has a gradient, the loss, who ends
    assert two["bytes_sent_a_step"] == 4 * numbers  # a ring of two: each number once, in float32
    share = two["communication_share"]
    assert 0 < share["min"] <= share["median"] <= share["max"] < 1
    assert "processes" not in one
    assert two["memory_by_kind_mb"]["weights"] == one["memory_by_kind_mb"]["weights"]
    assert two["memory_by_kind_mb"]["activations"] < one["memory_by_kind_mb"]["activations"]
    assert list(result["ratios"]) == ["full_in_2_processes_vs_one", "adaptive_in_2_processes_vs_one"]


@pytest.mark.slow
def test_the_command_measures_language_models_beside_trl(tiny_llama, told):
    pytest.importorskip("trl")
    names = [
        "rankwise lora",
        "rankwise full",
        "trl lora",
        "trl lora padding-free",
        "trl full",
        "gemm lower bound",
    ]
    result = told(
        "bench", "--problem", "generation", "--random-weights", tiny_llama, "--threads", 1, "--rows", 16, "--repeats", 2,
        "--contenders", *names,
    )  # fmt: skip
    assert result["failed"] == {}
    assert [row["name"] for row in result["rows"]] == names
    assert result["config"]["lengths"] == "e2e"
    assert {"lora_vs_trl_best", "full_vs_trl_full_best", "step_vs_lower_bound"} <= result["ratios"].keys()
    assert result["memory_ratios"].keys() == {"trl_best_vs_lora", "trl_full_best_vs_full"}
    assert [note.split(":")[0] for note in result["notes"]] == [
        "TRL's fastest setting for LoRA",
        "TRL's fastest setting for full fine-tuning",
    ]


def test_without_trl_its_contenders_are_left_out_with_a_sentence_or_refused_where_named(
    language_config, monkeypatch
):
    monkeypatch.setattr(measurement.importlib.util, "find_spec", lambda name: None if name == "trl" else name)
    asked = replace(language_config, contenders=())
    assert not [name for name in resolve(asked).contenders if name.startswith("trl")]
    rates = {"rows_per_second": 1, "tokens_per_second": 1, "step_seconds": {"median": 1}}
    memory = {"peak_memory_mb": 1, "memory_by_kind_mb": {}, "peak_rss_mb": 1}
    monkeypatch.setattr(
        measurement, "compete", lambda names, *_, **__: [Record(name, [rates], memory) for name in names]
    )
    assert measurement.bench(asked)["notes"] == [
        "TRL's SFTTrainer is left out, because trl isn't installed: pip install trl."
    ]
    with pytest.raises(RankwiseError, match="The baselines need trl: pip install trl, or name"):
        resolve(replace(asked, contenders=("trl lora",)))
