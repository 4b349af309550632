"""`train --shard` in two processes: the result of one process, while each holds a part of the layers."""

import json
import re
import signal

import numpy as np
import pytest
import transformers as hf
from safetensors.numpy import load_file

import several
import tiny
from rankwise.run_folder import RunFolder

CLOSE = 1e-5
SETTINGS = {
    "adaptive": ["--method", "adaptive", "--epochs", "3"],
    "lora packed": ["--method", "lora", "--epochs", "0.4", "--lora-dropout", "0.1", "--accumulate", "2"],
    "lora padded": ["--method", "lora", "--epochs", "0.4", "--padding", "longest", "--accumulate", "3"],
    "lora lean": ["--method", "lora", "--epochs", "0.4", "--memory", "lean"],
    "batches of one row": ["--method", "lora", "--epochs", "0.02", "--batch-size", "1"],
    "a language model": ["--method", "lora", "--epochs", "0.4", "--problem", "generation", "--text", "text"],
    "full": ["--method", "full", "--epochs", "0.4"],
    "full lean": ["--method", "full", "--epochs", "0.4", "--memory", "lean", "--padding", "longest"],
    "full, several micro-batches": [
        "--method",
        "full",
        "--epochs",
        "0.2",
        "--accumulate",
        "3",
        "--clip",
        "0.1",
    ],
    "full, a language model": [
        "--method",
        "full",
        "--epochs",
        "0.4",
        "--problem",
        "generation",
        "--text",
        "text",
    ],
    "full, batches of one row": ["--method", "full", "--epochs", "0.02", "--batch-size", "1"],
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows, and models of four layers without dropout: a BERT, and a Llama."""
    folder = tmp_path_factory.mktemp("sharding")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.reviews(400)))
    bert = {**tiny.CONFIGS["bert"].to_dict(), "num_hidden_layers": 4}
    config = hf.BertConfig(**{**bert, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    hf.set_seed(0)
    hf.BertModel(config).save_pretrained(folder / "bert")
    tiny.tokenizer().save_pretrained(folder / "bert")
    tiny.language_model_folder(folder / "llama")
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "HF_HUB_OFFLINE": "1"}


def command(folder, name, out, *more):
    defaults = {"--batch-size": "16", "--lr": "1e-3" if name.startswith("full") else "1e-2"}
    more += tuple(word for option in defaults.items() if option[0] not in SETTINGS[name] for word in option)
    model = folder / ("llama" if "language model" in name else "bert")
    always = ["--model", model, "--dtype", "float32", "--threads", "1", "--out", out]
    return ["train", folder / "rows.jsonl", *always, *SETTINGS[name], *more]


@pytest.fixture(scope="module")
def runs(folder, environment):
    """Each setting in one process, and sharded in two: number → setting → its run folder."""
    made = {}
    for processes, more in ((1, ()), (2, ("--shard",))):
        made[processes] = {name: folder / f"{name} {processes}" for name in SETTINGS}
        commands = [command(folder, name, out, *more) for name, out in made[processes].items()]
        done = several.run(processes, *commands, environment=environment)
        assert done.returncode == 0, done.stderr
    return made


def assert_alike(out, single):
    """Two runs took the same steps, made the same decisions, and saved the same weights, to rounding."""
    one, other = RunFolder(out), RunFolder(single)
    losses = ([line["loss"] for line in folder.read_steps()] for folder in (one, other))
    np.testing.assert_allclose(*losses, atol=CLOSE, rtol=0)
    decided = (
        [
            (line["step"], line.get("kind"), line.get("accepted"), line.get("changes"))
            for line in folder.read_ranks()
        ]
        for folder in (one, other)
    )
    assert next(decided) == next(decided)
    assert one.read_result()["rank"] == other.read_result()["rank"]
    assert one.read_result()["scores"].keys() == other.read_result()["scores"].keys()
    predicted = (np.array(folder.read_predictions()["logits"].to_pylist()) for folder in (one, other))
    np.testing.assert_allclose(*predicted, atol=1e-3)
    kind = "adapter_" if one.read_result()["rank"] else ""
    weights, config = (f"{kind}model.safetensors", f"{kind}config.json")
    ours, theirs = (load_file(folder.path / weights) for folder in (one, other))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-3, err_msg=name)
    configs = ((folder.path / config).read_text() for folder in (one, other))
    assert next(configs) == next(configs)


@pytest.mark.parametrize("name", SETTINGS)
def test_processes_that_share_out_the_layers_train_as_one_process_does(runs, name):
    assert_alike(runs[2][name], runs[1][name])


def test_ranks_were_decided(runs):
    changed = [
        line
        for line in RunFolder(runs[2]["adaptive"]).read_ranks()
        if line.get("changes") and line.get("accepted")
    ]
    assert changed


def test_each_process_holds_its_part_of_the_layers_and_gathers_few_at_a_time(runs):
    one, two = (RunFolder(runs[n]["lora packed"]).read_result()["peak_memory_mb"]["weights"] for n in (1, 2))
    layer = 4 * (4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32) / 1e6
    assert one - two == pytest.approx((4 - 4 / 2 - 1) * layer, rel=1e-6)  # one layer is whole at the peak


def test_a_result_counts_the_weights_that_were_gathered(runs):
    """Each layer twice for each micro-batch, of which each process has one: half of it comes from the other."""
    whole, shared = (RunFolder(runs[2][name]).read_result() for name in ("lora padded", "lora packed"))
    full = RunFolder(runs[2]["full, several micro-batches"]).read_result()
    layers = 4 * 4 * (4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32)
    trained = 4 * shared["trainable_params"]
    assert shared["bytes_sent_a_step"] == pytest.approx(trained + 2 * layers / 2, rel=0.02)
    assert whole["bytes_sent_a_step"] == pytest.approx(trained + 2 * 2 * layers / 2, rel=0.02)
    outside = 4 * full["trainable_params"] - layers  # and the gradients of layers, once for each micro-batch
    assert full["bytes_sent_a_step"] == pytest.approx(outside + 2 * 3 * layers / 2, rel=0.02)


def test_each_process_holds_the_gradients_and_moments_of_its_part(runs):
    one, two = (RunFolder(runs[n]["full"]).read_result()["peak_memory_mb"] for n in (1, 2))
    layers = 4 * 4 * (4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32) / 1e6
    assert one["optimizer"] - two["optimizer"] == pytest.approx(2 * layers / 2, rel=0.01)
    assert one["gradients"] - two["gradients"] > layers / 4


STEPS = {"adaptive": 33, "full": 4}
"""Of adaptive behind the first changes of ranks."""


@pytest.mark.parametrize("name", STEPS)
def test_a_killed_process_ends_the_job_and_one_process_continues(runs, folder, environment, name):
    out, step = folder / f"{name} from two to one", STEPS[name]
    done = several.run(
        2, command(folder, name, out, "--shard"),
        environment=environment, what="kill", process=1, step=step, checkpoints=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert several.said(done) == [f"{several.LOST} The same command continues from the last checkpoint."]
    done = several.run(1, command(folder, name, out), environment=environment)
    assert done.returncode == 0, done.stderr
    assert f"Continued from step {step}." in done.stdout
    assert_alike(out, runs[1][name])


def test_two_processes_share_out_what_one_process_began(runs, folder, environment):
    out = folder / "from one to two"
    done = several.run(
        1, command(folder, "full", out), environment=environment, what="term", process=0, step=STEPS["full"]
    )
    assert done.returncode == 128 + signal.SIGTERM
    done = several.run(2, command(folder, "full", out, "--shard"), environment=environment)
    assert done.returncode == 0, done.stderr
    assert f"Continued from step {STEPS['full'] + 1}." in done.stdout
    assert_alike(out, runs[1]["full"])


def test_a_signal_to_one_process_saves_the_parts_of_both(runs, folder, environment):
    out = folder / "interrupted"
    again = command(folder, "full", out, "--shard")
    done = several.run(2, again, environment=environment, what="term", process=1, step=STEPS["full"])
    assert RunFolder(out).checkpoint is not None, done.stderr
    done = several.run(2, again, environment=environment)
    assert f"Continued from step {STEPS['full'] + 1}." in done.stdout, done.stderr
    assert_alike(out, runs[1]["full"])


def test_four_processes_share_out_layers_that_do_not_divide_by_four(runs, folder, environment):
    config = json.loads((folder / "bert" / "config.json").read_text())
    model = folder / "uneven"
    hf.set_seed(0)
    hf.BertModel(
        hf.BertConfig(**{**config, "hidden_size": 30, "num_attention_heads": 2, "intermediate_size": 3})
    ).save_pretrained(model)
    tiny.tokenizer().save_pretrained(model)
    made = {}
    for processes, more in ((1, ()), (4, ("--shard",))):
        again = command(folder, "full", folder / f"uneven {processes}", *more)
        again[again.index("--model") + 1] = model
        done = several.run(processes, again, environment=environment)
        assert done.returncode == 0, done.stderr
        made[processes] = folder / f"uneven {processes}"
    assert_alike(made[4], made[1])


def test_an_error_in_one_process_is_told_once(folder, environment):
    out = folder / "odd"
    done = several.run(
        2,
        command(folder, "lora packed", out, "--shard"),
        environment=environment,
        what="error",
        process=1,
        step=3,
    )
    assert several.said(done) == ["This row is odd. Remove it."]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--base-bits", "8"], r"--shard and --base-bits don't go together\. Leave one out\."),
        (["--memory", "1GB"], r"With --shard, --memory takes fast or lean, not 1GB: no size is measured\."),
    ],
)
def test_what_can_not_be_sharded_is_refused_in_words(folder, environment, options, sentence):
    done = several.run(
        2, [*command(folder, "lora packed", folder / "refused", "--shard"), *options], environment=environment
    )
    (said,) = several.said(done)
    assert re.fullmatch(sentence, said)


def test_other_methods_are_refused_in_words(folder, environment):
    again = command(folder, "lora packed", folder / "refused", "--shard")
    again[again.index("lora")] = "bitfit"
    (said,) = several.said(several.run(2, again, environment=environment))
    assert said == "--shard is for lora, adaptive and full, not for bitfit."
