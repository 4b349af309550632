"""`torchrun -m rankwise train` in 2 and 4 processes: the result of one process, also where a process fails or the job goes on in fewer."""

import json
import re
import signal
import subprocess
import time

import numpy as np
import pytest

import several
import tiny
from rankwise.run_folder import RunFolder

CLOSE = 1e-5
COMMON = ["--dtype", "float32", "--threads", "1"]
SETTINGS = {
    "adaptive packed": ["--method", "adaptive", "--epochs", "3", "--lr", "5e-3"],
    "adaptive padded": ["--method", "adaptive", "--epochs", "3", "--padding", "longest", "--lr", "5e-3"],
    "lora packed": ["--method", "lora", "--epochs", "0.4", "--lora-dropout", "0.1", "--accumulate", "2"],
    "lora padded": ["--method", "lora", "--epochs", "0.4", "--padding", "max_length", "--accumulate", "3"],
    "full packed": ["--method", "full", "--epochs", "0.4"],
    "full padded": ["--method", "full", "--epochs", "0.4", "--padding", "longest"],
    "adalora packed": ["--method", "peft:adalora", "--epochs", "0.4"],
    "batches of one row": ["--method", "lora", "--epochs", "0.02", "--batch-size", "1"],
}
IN_FOUR = ["adaptive packed", "lora padded", "full packed", "batches of one row"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows, and a model with dropout and one without."""
    folder = tmp_path_factory.mktemp("several")
    rows = "".join(json.dumps(row) + "\n" for row in tiny.reviews(400))
    (folder / "rows.jsonl").write_text(rows)
    tiny.model_folder(folder / "packed")
    tiny.model_folder(folder / "padded")
    config = json.loads((folder / "padded" / "config.json").read_text())
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "padded" / "config.json").write_text(json.dumps(config | off))
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "HF_HUB_OFFLINE": "1"}


def command(folder, name, out):
    defaults = {"--batch-size": "16", "--lr": "1e-2"}
    more = [word for option in defaults.items() if option[0] not in SETTINGS[name] for word in option]
    model = folder / ("padded" if "padded" in name else "packed")
    return ["train", folder / "rows.jsonl", "--model", model, "--out", out, *COMMON, *more, *SETTINGS[name]]


@pytest.fixture(scope="module")
def runs(folder, environment):
    """Settings in one, two and four processes: number → setting → its run folder."""
    made = {}
    for processes, names in ((1, SETTINGS), (2, SETTINGS), (4, IN_FOUR)):
        made[processes] = {name: folder / f"{name} {processes}".replace(" ", "-") for name in names}
        commands = [command(folder, name, out) for name, out in made[processes].items()]
        done = several.run(processes, *commands, environment=environment)
        assert done.returncode == 0, done.stderr
    return made


def losses(out):
    return np.array([line["loss"] for line in RunFolder(out).read_steps()])


def decided(out):
    return [
        (line["step"], line.get("kind"), line.get("accepted"), line.get("changes"))
        for line in RunFolder(out).read_ranks()
    ]


def assert_alike(out, single):
    """Two runs took the same steps and made the same decisions, to rounding."""
    np.testing.assert_allclose(losses(out), losses(single), atol=CLOSE, rtol=0)
    assert decided(out) == decided(single)
    ours, theirs = RunFolder(out).read_result(), RunFolder(single).read_result()
    assert ours["rank"] == theirs["rank"]
    assert ours["n_train"] == theirs["n_train"]
    logits = (np.array(RunFolder(x).read_predictions()["logits"].to_pylist()) for x in (out, single))
    np.testing.assert_allclose(*logits, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "processes"), [*((name, 2) for name in SETTINGS), *((name, 4) for name in IN_FOUR)]
)
def test_several_processes_train_as_one_does(runs, name, processes):
    out, single = runs[processes][name], runs[1][name]
    assert_alike(out, single)
    if name.startswith("adaptive"):
        changed = [
            line for line in RunFolder(out).read_ranks() if line.get("changes") and line.get("accepted")
        ]
        assert len(changed) >= 3, decided(out)


def test_a_result_says_what_was_sent(runs):
    """A ring of two sends each number of the buffer once: 4 bytes for each trained parameter at least, and little else."""
    result = RunFolder(runs[2]["full packed"]).read_result()
    assert result["processes"] == 2
    assert 1 <= result["bytes_sent_a_step"] / (4 * result["trainable_params"]) < 1.01
    assert 0 < result["speed"]["shares"]["communication"] < 1
    assert "processes" not in RunFolder(runs[1]["full packed"]).read_result()


@pytest.fixture
def hosts(tmp_path):
    try:
        with several.Hosts(tmp_path) as hosts:
            yield hosts
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces can't be made here: {error}")


def test_two_hosts_train_as_one_process_does(runs, folder, environment, hosts):
    """Each in a network namespace of its own: what one host has to say to the other must go over the network."""
    names = "adaptive packed", "full padded"
    made = {name: folder / f"{name} hosts".replace(" ", "-") for name in names}
    for done in hosts.run(*(command(folder, *one) for one in made.items()), environment=environment):
        assert done.returncode == 0, done.stderr
    for name, out in made.items():
        assert_alike(out, runs[1][name])
        assert RunFolder(out).read_result()["processes"] == 2


def test_a_torn_network_ends_the_job_and_one_process_continues(runs, folder, environment, hosts):
    out = folder / "torn"
    again = command(folder, "adaptive packed", out)

    def tear():
        wait_until(lambda: (out / "steps.jsonl").exists() and len(losses(out)) >= STEP)
        hosts.tear()
        time.sleep(several.SILENCE + 40)  # one of the two also waits for leave to speak
        hosts.mend()  # torchrun's own processes wait for each other, however long

    first, other = hosts.run(again, environment=environment, meanwhile=tear, silence=several.SILENCE)
    assert several.said(first) == [f"{several.LOST} The same command continues from the last checkpoint."]
    assert several.LOST in other.stderr
    done = several.run(1, again, environment=environment)
    assert done.returncode == 0, done.stderr
    assert "Continued from step " in done.stdout
    assert_alike(out, runs[1]["adaptive packed"])


def wait_until(holds):
    until = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


# Failures: one process says what happened, and nothing is lost

STEP = 33
"""Behind the first changes of ranks."""


def test_a_killed_process_ends_the_job_and_one_process_continues(runs, folder, environment):
    out = folder / "from two to one"
    again = command(folder, "adaptive packed", out)
    done = several.run(2, again, environment=environment, what="kill", process=1, step=STEP)
    assert done.returncode != 0
    assert several.said(done) == [f"{several.LOST} The same command continues from the last checkpoint."]
    assert not RunFolder(out).finished
    done = several.run(1, again, environment=environment)
    assert done.returncode == 0, done.stderr
    assert f"Continued from step {STEP}." in done.stdout
    assert "It began in 2 processes and goes on in 1 process: results may differ by rounding." in done.stdout
    assert_alike(out, runs[1]["adaptive packed"])


def test_a_job_of_two_processes_continues_what_one_began(runs, folder, environment):
    out = folder / "from one to two"
    again = command(folder, "adaptive packed", out)
    done = several.run(1, again, environment=environment, what="term", process=0, step=STEP)
    assert done.returncode == 128 + signal.SIGTERM
    done = several.run(2, again, environment=environment)
    assert done.returncode == 0, done.stderr
    assert f"Continued from step {STEP + 1}." in done.stdout
    assert_alike(out, runs[1]["adaptive packed"])


def test_torchelastic_starts_again_from_the_last_checkpoint(runs, folder, environment):
    out = folder / "again"
    done = several.run(
        2, command(folder, "adaptive packed", out),
        environment=environment, restarts=1, what="kill", process=0, step=STEP, checkpoints=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"Continued from step {STEP}." in done.stdout
    assert_alike(out, runs[1]["adaptive packed"])


def test_a_signal_to_one_process_ends_all_after_the_same_step(folder, environment):
    out = folder / "interrupted"
    again = command(folder, "lora packed", out)
    done = several.run(2, again, environment=environment, what="term", process=1, step=3)
    (sentence,) = several.said(done)
    assert re.fullmatch(
        r"Interrupted.* after step 4 of 8\. The same command continues from there\.", sentence
    )
    assert RunFolder(out).checkpoint is not None


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("error", r"This row is odd\. Remove it\."),
        ("weights", r"The weights after the last step of process 1 differ from those of process 0.*"),
    ],
)
def test_one_process_speaks_for_all(folder, environment, what, sentence):
    done = several.run(
        2,
        command(folder, "lora packed", folder / what),
        environment=environment,
        what=what,
        process=1,
        step=3,
    )
    (said,) = several.said(done)
    assert re.fullmatch(sentence, said)
    assert "exitcode  : 2" in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [(["--label", "stars"], "has no column 'stars'"), (["--stars"], "Unknown option")],
)
def test_an_error_in_the_input_is_told_once(folder, environment, options, sentence):
    done = several.run(
        2, [*command(folder, "lora packed", folder / "odd"), *options], environment=environment
    )
    (said,) = several.said(done)
    assert sentence in said
    assert "exitcode  : 2" in done.stderr
    assert not (folder / "odd").exists()


def test_a_gradient_that_is_infinite_in_one_process_is_skipped_in_all(folder, environment):
    out = folder / "infinite"
    again = command(folder, "adaptive padded", out)
    done = several.run(2, again, environment=environment, what="inf", process=1, step=5)
    assert done.returncode == 0, done.stderr
    assert RunFolder(out).read_result()["skipped_steps"] == 1
    assert [line["step"] for line in RunFolder(out).read_steps() if line.get("skipped")] == [6]
