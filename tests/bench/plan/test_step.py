"""What a plan says against independent truths: bytes counted by hand, and tiny models really trained."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf

import tiny
from rankwise.bench.lengths import random_rows
from rankwise.bench.plan import (
    BatchSizes,
    MemoryPlanner,
    Setting,
    build_training,
    can_be_packed,
    draw_rows,
    find_architecture,
    find_lengths,
    has_plain_head,
    heaviest_batch,
    judge,
    plan,
    with_layers,
)
from rankwise.cli import main
from rankwise.config import PlanConfig
from rankwise.engine.batch_schedule import GivenBatches
from rankwise.engine.compute import predict_logits
from rankwise.engine.execution import Engine
from rankwise.engine.measure import KINDS
from rankwise.errors import RankwiseError

LENGTHS = np.array([5, 9, 14, 30, 31, 7, 40, 12])


def architecture(family: str, **settings):
    config = type(tiny.CONFIGS[family])(**{**tiny.CONFIGS[family].to_dict(), "num_labels": 2, **settings})
    config.pad_token_id = 0
    return config


def setting(family="bert", method="lora", **changes):
    return replace(Setting(architecture(family), method, 4, torch.float32, "packed"), **changes)


def measured(asked: Setting, recompute: bool, lengths: np.ndarray = LENGTHS) -> dict[str, int]:
    """The peak of real steps, the first left out."""
    training = build_training(asked)
    training.compute = replace(training.compute, engine=Engine(recompute=recompute))
    training.rows = draw_rows(asked, lengths)
    training.batches = GivenBatches([np.arange(8)], 10**6)
    with training.compute.running(training.model):
        training.step()
        with training.memory() as memory:
            training.step()
    return memory.peak


@pytest.mark.parametrize("recompute", [False, True], ids=["fast", "lean"])
@pytest.mark.parametrize(
    ("method", "dtype"),
    [("full", torch.float32), ("full", torch.bfloat16), ("lora", torch.bfloat16)],
    ids=["full-float32", "full-bfloat16", "lora-bfloat16"],
)
@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama", "distilbert"])
def test_a_plan_is_what_a_real_step_takes(family, method, dtype, recompute):
    asked = setting(family, method, dtype=dtype)
    planned = MemoryPlanner(asked).peak(LENGTHS, recompute=recompute)
    real = measured(asked, recompute)
    assert sum(planned.values()) == pytest.approx(sum(real.values()), rel=0.01)
    for kind in ("weights", "gradients", "optimizer"):
        assert planned[kind] == real[kind]


def writer(family="llama", method="lora", **changes) -> Setting:
    """A language model whose logits are most of its memory unless they are computed in pieces."""
    words = architecture(family, vocab_size=2000)
    plain = changes.pop("plain_head", True)
    return setting(family, method, architecture=words, problem="generation", plain_head=plain, **changes)


@pytest.mark.parametrize(
    ("family", "method", "dtype", "recompute", "lengths"),
    [
        ("llama", "lora", torch.bfloat16, False, LENGTHS),
        ("llama", "lora", torch.float32, False, np.full(8, 60)),
        ("llama", "full", torch.float32, True, np.full(8, 60)),
        ("gpt2", "full", torch.bfloat16, False, np.full(8, 60)),
    ],
    ids=["few labels", "labels in pieces", "full, lean", "full, bfloat16"],
)
def test_a_plan_of_a_language_model_is_what_a_real_step_takes(family, method, dtype, recompute, lengths):
    asked = writer(family, method, dtype=dtype)
    planned, real = (
        MemoryPlanner(asked).peak(lengths, recompute=recompute),
        measured(asked, recompute, lengths),
    )
    assert sum(planned.values()) == pytest.approx(sum(real.values()), rel=0.02)
    for kind in ("weights", "gradients", "optimizer"):
        assert planned[kind] == real[kind]


def test_logits_in_pieces_take_less_than_all_at_once():
    pieces, whole = (MemoryPlanner(writer(plain_head=plain)).peak(np.full(32, 60)) for plain in (True, False))
    labels, words, size = 32 * 59, 2000, 4
    assert sum(whole.values()) - sum(pieces.values()) > (labels - 256) * words * size


def test_a_pass_over_held_out_rows_of_a_language_model_is_planned_as_it_is_run():
    asked, lengths = writer(method="adaptive"), np.full(40, 60)
    planned = BatchSizes(MemoryPlanner(asked), lengths, recompute=True)(1)
    training = build_training(asked)
    rows = draw_rows(asked, np.full(512 // 60, 60))
    with training.compute.running(training.model):
        training.step()
        with training.memory() as memory:
            predict_logits(training.model, rows, training.compute, objective=training.objective)
    assert sum(planned.values()) == pytest.approx(sum(memory.peak.values()), rel=0.02)


def test_a_model_without_weights_is_asked_whether_its_head_gives_its_logits():
    assert has_plain_head(architecture("llama"))
    assert not has_plain_head(hf.Gemma2Config(**tiny._LLAMA, final_logit_softcapping=30.0))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_plan_of_a_token_classifier_is_what_a_real_step_takes(method):
    asked = setting("bert", method, problem="tokens")
    planned, real = MemoryPlanner(asked).peak(LENGTHS), measured(asked, False)
    assert sum(planned.values()) == pytest.approx(sum(real.values()), rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_and_moments_are_the_bytes_one_counts_by_hand(dtype):
    # BERT, width 32, feed-forward 64, 2 layers, 100 tokens, 64 positions, 2 token types, 2 classes.
    d, f, r = 32, 64, 4
    layer = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 2 * 2 * d
    body = (100 + 64 + 2) * d + 2 * d + 2 * layer + d * d + d
    head = 2 * d + 2
    adapters = 2 * 2 * 2 * r * d
    size = dtype.itemsize
    buffers = 2 * 64 * 8  # position ids and token types, int64
    peak = MemoryPlanner(setting(dtype=dtype)).peak(LENGTHS)
    # Flat buffers round the 2-D sections (all multiples of 16 here) and the bias of 2 up to 16 numbers.
    assert peak["weights"] == body * size + (adapters + 2 * d + 16) * 4 + buffers
    steps = 2 * 4  # a count for each of the optimizer's two tensors
    assert peak["optimizer"] == 2 * (adapters + 2 * d + 16) * 4 + steps
    full = MemoryPlanner(setting(method="full", dtype=dtype)).peak(LENGTHS)
    products = (
        2 * (4 * d * d + 2 * d * f) + d * d + 2 * d
    )  # weights of Linears, which have copies in a lesser dtype
    copies = products * size if dtype != torch.float32 else 0
    assert full["weights"] == (body + head) * 4 + copies + buffers
    tensors = 5 + 2 * 16 + 2 + 2
    assert full["optimizer"] == 2 * (body + head) * 4 + tensors * 4


@pytest.mark.parametrize("recompute", [False, True], ids=["fast", "lean"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_two_shallow_models_say_what_the_deep_one_would(family, method, recompute):
    deep = setting(family, method, architecture=architecture(family, num_hidden_layers=9, layer_types=None))
    followed = MemoryPlanner(deep)
    assert followed.depths == (3, 4)
    assert followed.peak(LENGTHS, recompute=recompute) == MemoryPlanner(deep, (9,)).peak(
        LENGTHS, recompute=recompute
    )


def test_a_pass_over_held_out_rows_is_the_peak_where_it_takes_more_than_a_step():
    asked = setting(method="adaptive")
    lengths = np.full(600, 30)
    planner = MemoryPlanner(asked)
    small, large = (BatchSizes(planner, lengths, recompute=True)(n) for n in (1, 64))
    assert sum(small.values()) > sum(planner.peak(np.full(1, 30), recompute=True).values())
    assert sum(large.values()) == sum(planner.peak(np.full(64, 30), recompute=True).values())
    training = build_training(asked)
    rows = random_rows(np.full(2048 // 30, 30), asked.architecture, np.random.default_rng(1))
    with training.compute.running(training.model):
        training.step()
        with training.memory() as memory:
            predict_logits(training.model, rows, training.compute)
    assert sum(small.values()) == pytest.approx(sum(memory.peak.values()), rel=0.01)


def test_a_part_more_takes_gradients_of_its_own():
    one, two = (MemoryPlanner(setting(method="full", micro_batches=n)).peak(LENGTHS) for n in (1, 2))
    assert sum(two.values()) > sum(one.values())


def test_a_model_without_weights_is_asked_whether_it_can_be_packed():
    assert can_be_packed(architecture("roberta"))
    assert not can_be_packed(architecture("mpnet"))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_model_with_an_encoder_and_a_decoder_is_planned(family, method):
    sizes = {
        "vocab_size": 100,
        "d_model": 32,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 0,
    }
    layers = {"d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    if family == "bart":
        parts = ("encoder", "decoder")
        layers = {
            f"{p}_{n}": size
            for p in parts
            for n, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
        }
        layers["max_position_embeddings"] = 64
    config = hf.AutoConfig.for_model(family, **sizes, **layers, num_labels=2)
    targets = ("q", "v") if family == "t5" else ("q_proj", "v_proj")
    asked = Setting(config, method, 4, torch.float32, "longest", targets=targets)
    planned, real = MemoryPlanner(asked).peak(LENGTHS), measured(asked, recompute=False)
    assert 1 <= sum(planned.values()) / sum(real.values()) < 1.05  # without values, all tokens are pooled
    assert planned["weights"] == real["weights"]


def test_a_model_whose_weights_are_drawn_until_they_fit_is_planned():
    truncated = torch.nn.init._no_grad_trunc_normal_
    real = build_training(setting("modernbert", targets=("Wqkv",)))
    planned = MemoryPlanner(setting("modernbert", targets=("Wqkv",))).peak(LENGTHS)
    stored = {p.data_ptr(): p.nbytes for p in real.model.parameters() if not p.requires_grad}
    assert planned["weights"] >= sum(stored.values())
    assert torch.nn.init._no_grad_trunc_normal_ is truncated


def test_a_padded_model_is_planned_with_its_padding():
    padded = setting("mpnet", padding="longest", targets=("attn.q", "attn.v"))
    planned, real = MemoryPlanner(padded).peak(LENGTHS), measured(padded, False)
    assert sum(planned.values()) == pytest.approx(sum(real.values()), rel=0.05)


@pytest.mark.parametrize("name", ["roberta-base", "FacebookAI/roberta-large", "llama-3.1-8b"])
def test_shipped_architectures_need_no_hub(name):
    found = find_architecture(name)
    assert found.num_hidden_layers >= 12
    assert with_layers(found, 2).num_hidden_layers == 2


def test_an_8b_model_takes_its_bytes_and_no_memory():
    found = find_architecture("llama-3.1-8b")
    peak = MemoryPlanner(Setting(found, "lora", 8, torch.bfloat16, "packed")).peak(np.array([64, 64]))
    # 8.03 billion parameters of Llama 3.1 8B without its language head of 128256 × 4096, in two bytes each.
    assert peak["weights"] == pytest.approx(2 * (8.03e9 - 128256 * 4096), rel=2e-3)


def test_a_config_json_is_enough(tmp_path):
    tiny.config("roberta").save_pretrained(tmp_path)
    for place in (tmp_path, tmp_path / "config.json"):
        assert isinstance(find_architecture(str(place)), hf.RobertaConfig)


def test_what_is_no_config_is_refused_in_words(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RankwiseError, match="is no config.json of a Transformers model"):
        find_architecture(str(tmp_path))


def test_lengths_come_from_a_task_a_number_or_a_file(tmp_path):
    assert set(find_lengths("37")) == {37}
    assert len(find_lengths("rte")) > 2000
    file = tmp_path / "lengths.txt"
    file.write_text("3\n9\n4\n")
    assert find_lengths(str(file)).tolist() == [3, 9, 4]
    file.write_text("3\nmany\n")
    with pytest.raises(RankwiseError, match="one number of tokens per line"):
        find_lengths(str(file))


@pytest.mark.parametrize("recompute", [False, True], ids=["fast", "lean"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_largest_batch_fits_and_one_a_quarter_larger_does_not(method, recompute):
    planner = MemoryPlanner(setting("roberta", method, dtype=torch.bfloat16))
    lengths = np.random.default_rng(3).integers(5, 50, 400)

    def peak(batch_size):
        return sum(
            planner.peak(heaviest_batch(lengths, batch_size, planner.setting), recompute=recompute).values()
        )

    limit = peak(100)
    found = BatchSizes(planner, lengths, recompute).largest(4, lambda p: sum(p.values()) <= limit)
    assert found >= 93
    assert (
        peak(found) <= limit < peak(int(1.25 * found))
    )  # how rows group makes a size now and then lighter than a smaller one


def test_of_rows_of_one_length_the_largest_batch_is_known():
    planner, lengths = MemoryPlanner(setting()), np.full(400, 20)
    limit = sum(planner.peak(np.full(100, 20)).values())
    found = BatchSizes(planner, lengths, recompute=False).largest(16, lambda p: sum(p.values()) <= limit)
    assert 92 <= found <= 100


def test_the_batch_that_is_asked_for_counts_as_it_is_gone_through():
    planner, lengths = MemoryPlanner(setting()), np.full(100, 20)
    sizes = BatchSizes(planner, lengths, recompute=False)
    limit = sum(sizes(16).values())  # to the byte: with a reserve it would not fit
    assert sizes.largest(16, lambda p: sum(p.values()) <= limit) == 16


def test_where_no_row_fits_the_largest_batch_is_none():
    sizes = BatchSizes(MemoryPlanner(setting()), np.full(50, 20), recompute=False)
    assert sizes.largest(16, lambda p: False) == 0


def test_a_card_near_its_limit_is_too_close_to_call():
    peak = dict.fromkeys(KINDS, 10**9)
    assert judge(peak, 6e9, "cpu") == "fits"
    assert judge(peak, 6e9 - 1, "cpu") == "doesn't"
    assert [judge(peak, limit, "cuda") for limit in (6e9, 7e9, 9e9)] == [
        "doesn't",
        "too close to call",
        "fits",
    ]


def test_a_plan_answers_for_every_configuration(tmp_path):
    wide = architecture("bert", hidden_size=128, intermediate_size=256)  # adapters are small beside it
    wide.save_pretrained(tmp_path)
    config = PlanConfig(model=str(tmp_path), lengths="20", batch_size=128, memory="1GB", dtype="float32")
    found = plan(config)["configurations"]
    assert [(one["method"], one["rank"], one["memory_mode"]) for one in found] == [
        (method, rank, mode)
        for method, rank in (("full", None), ("lora", 8), ("adaptive", 16))
        for mode in ("fast", "lean")
    ]
    for one in found:
        kinds = one["peak_memory_mb"]
        assert list(kinds) == ["total", *KINDS]
        assert round(kinds["total"] * 1e6) == sum(round(kinds[kind] * 1e6) for kind in KINDS)
        assert one["fits"] is True
    by = {(one["method"], one["memory_mode"]): one["peak_memory_mb"]["total"] for one in found}
    assert by["lora", "lean"] < by["lora", "fast"] < by["adaptive", "fast"] < by["full", "fast"]


def test_the_command_prints_words_or_one_object(tmp_path, capfd):
    architecture("bert").save_pretrained(tmp_path)
    arguments = ["plan", "--model", str(tmp_path), "--lengths", "20", "--methods", "lora", "--memory", "30KB"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    said = capfd.readouterr().out
    assert "LoRA of rank 8 doesn't fit in" in said
    assert "not even a single row fits" in said
    with pytest.raises(SystemExit):
        main([*arguments, "--json"])
    assert json.loads(capfd.readouterr().out)["configurations"][0]["fits"] is False


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--memory", "lean"], "--memory is a size to fit in, such as 8GB; lean is a --memory-mode."),
        (["--problem", "generation"], "roberta-base is an encoder, and no causal language model"),
        (["--methods", "prefix"], "--methods takes full, lora, adaptive, not 'prefix'."),
        (["--task", "stt2"], "Lengths are a task's name or a number of tokens, not 'stt2'."),
    ],
)
def test_what_can_not_be_planned_is_refused_in_words(arguments, sentence, capfd):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--model", "roberta-base", *arguments])
    assert ended.value.code == 2
    assert sentence in capfd.readouterr().err


def test_time_an_epoch_is_measured_when_asked_for(tmp_path):
    architecture("bert").save_pretrained(tmp_path)
    config = PlanConfig(
        model=str(tmp_path), lengths="20", batch_size=4, methods=("lora",), memory_mode="fast", speed=True
    )
    (one,) = plan(config)["configurations"]
    assert one["seconds_per_epoch"] > 0


def test_a_plan_of_a_language_model_takes_its_own_model_and_lengths():
    found = plan(PlanConfig(problem="generation", methods=("lora",), memory_mode="fast", dtype="bfloat16"))
    assert (found["model"], found["lengths"], found["rows"], found["padding"]) == (
        "smollm2",
        "e2e",
        4672,
        "packed",
    )
    (one,) = found["configurations"]
    assert one["peak_memory_mb"]["weights"] == pytest.approx(
        2 * 134.5, rel=0.02
    )  # its head is the embeddings
