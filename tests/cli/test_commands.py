"""The command line as a person or a script meets it: what is printed where, exit codes, and a sentence for each thing that is wrong."""

import json
import os
import pickle
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

import tiny
from rankwise.cli import main
from rankwise.cli.commands import app
from rankwise.run_folder import RunFolder

FAST = ["--dtype", "float32", "--epochs", "1", "--batch-size", "16", "--lr", "1e-3", "--threads", "1"]
COMMANDS = [name for name in app if not name.startswith("-")]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """Each test has a folder and a cache of its own, and no hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    return str(tiny.model_folder(tmp_path_factory.mktemp("models") / "tiny-bert"))


@pytest.fixture(scope="session")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "reviews.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tiny.reviews(60)))
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, model, table) -> Path:
    """A finished run of `rankwise train` on the table."""
    folder = tmp_path_factory.mktemp("runs") / "adapter"
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(table), "--model", model, "--out", str(folder), *FAST])
    assert stopped.value.code == 0
    return folder


@pytest.fixture(scope="session")
def learned(tmp_path_factory, model) -> Path:
    """A finished run that can tell the labels apart, with a rank that is more than it takes."""
    folder = tmp_path_factory.mktemp("runs")
    rows = folder / "reviews.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in tiny.reviews(600)))
    slow = ["--lr", "5e-3", "--epochs", "3", "--dtype", "float32", "--threads", "1"]
    arguments = ["--model", model, "--method", "lora:rank=16", *slow, "--out", folder / "adapter"]
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(rows), *map(str, arguments)])
    assert stopped.value.code == 0
    return folder / "adapter"


@pytest.fixture
def rankwise(capfd):
    """Runs a command in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def refused(rankwise):
    """Runs a command that must be refused, and returns the one line that says why."""

    def call(*arguments: object) -> str:
        code, _, err = rankwise(*arguments)
        assert code == 2, err
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        assert not Path("out").exists()
        return err.strip()

    return call


def process(*arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "rankwise", *map(str, arguments)]
    return subprocess.Popen(command, env=dict(os.environ, HF_HUB_OFFLINE="1"), **options)


def write(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def reviews(name: str, rows: list[dict]) -> Path:
    return write(name, "".join(json.dumps(row) + "\n" for row in rows))


def glue(folder: str) -> Path:
    """A folder of Parquet files with a small rte in it, as `--data` takes it."""
    for split, n, seed in (("train", 40, 0), ("validation", 12, 1)):
        rows = tiny.reviews(n, seed)
        columns = {
            "sentence1": [row["text"] for row in rows],
            "sentence2": ["the film" for _ in rows],
            "label": [int(row["label"] == "negative") for row in rows],
            "idx": list(range(n)),
        }
        (Path(folder) / "rte").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), Path(folder) / "rte" / f"{split}.parquet")
    return Path(folder)


def is_plain(text: str) -> bool:
    return "\x1b" not in text and "\r" not in text


# ── What a newcomer types first ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_in_each_commands_help_is_valid(command, rankwise, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = rankwise(command, "--help")
    assert (code, err) == (0, "")
    (example,) = (line.strip() for line in out.splitlines() if line.startswith("Example: "))
    program, *arguments = shlex.split(example.removeprefix("Example: "))
    assert program == "rankwise"
    assert arguments[0] == command
    app.parse_args(arguments, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_shows_defaults_as_one_would_type_them(command, rankwise, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = rankwise(command, "--help")[1]
    for python in ("None]", "False]", "()]", "',", "default: ("):
        assert python not in out


def test_the_version_is_that_of_the_package(rankwise):
    assert rankwise("--version") == (0, f"{version('rankwise')}\n", "")


def test_without_arguments_the_commands_are_listed(rankwise):
    code, out, _ = rankwise()
    assert code == 0
    assert all(command in out for command in COMMANDS)


# ── Misspelt names ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("command", "near"),
    [
        ("trian --out out", "train"),
        ("--versoin", "--version"),
        ("train --epoch 1 --out out", "--epochs"),
        ("compare --task rte --out out", "--tasks"),
        ("train --task movis --out out", "movies"),
        ("train --method lorra --out out", "lora"),
        ("train --method lora:rnak=4 --out out", "rank"),
        ("train --recipe postr --out out", "poster"),
        ("train --dtype bfloat --out out", "bfloat16"),
        ("train --model minlm --task movies --out out", "minilm"),
        ("compare --tasks movies sst --out out", "sst2"),
        ("compare --methods full lorra --out out", "lora"),
        ("compare --recipe lora-papr --out out", "lora-paper"),
        ("compare --model minlm --tasks rte --out out", "minilm"),
    ],
)
def test_a_misspelt_name_gets_the_nearest_one_and_nothing_is_written(command, near, refused):
    assert near in refused(*command.split())


def test_a_misspelt_model_folder_is_answered_with_the_one_beside_it(model, table, refused):
    message = refused("train", table, "--model", model.replace("tiny-bert", "tiny-brt"), "--out", "out")
    assert f"Did you mean {model!r}?" in message


def test_a_misspelt_target_is_answered_with_the_nearest_layer(model, table, refused):
    message = refused("train", table, "--model", model, "--targets", "qurey", "--out", "out")
    assert "'qurey'. Did you mean 'query'?" in message


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("train", "rankwise train needs --out: Folder of the run"),
        ("train --out", "--out needs a value: Folder of the run"),
        ("predict adapter", "rankwise predict needs"),
        ("report", "rankwise report needs OUT"),
        ("merge a b --out out", "no use for 'b'. See rankwise merge --help"),
        ("train rows.csv --text a b --out out", "no use for 'b'. The second text of a pair has --text-pair."),
        ("evaluate adapter rows.csv b --text a", "no use for 'b'. See rankwise evaluate --help"),
        ("train --rank 4.5 --out out", "--rank must be a whole number; it is '4.5'"),
        ("train --rank 0 --out out", "--rank must be a number, 1 or more; it is 0"),
        ("train --epochs inf --out out", "--epochs must be a number above 0; it is inf"),
        ("train --lr nan --out out", "--lr must be a number above 0; it is nan"),
        ("train --warmup 1 --out out", "--warmup must be a fraction"),
        ("train --epochs two --out out", "--epochs"),
        ("train --text review --out out", "--text is for a table of your own"),
        ("train --seed 1 --seed 2 --out out", "--seed specified multiple times"),
        ("compare --tasks --out out", "--tasks names nothing to compare"),
        ("compare --methods full:rank=4 --out out", "full has no settings of its own"),
        ("compare --methods lora:prefer=size --out out", "lora has no setting 'prefer'"),
        ("compare --methods adaptive:prefer=speed --out out", "takes accuracy or size, not 'speed'"),
        ("train --prefer speed --out out", "--prefer"),
    ],
)
def test_an_argument_that_is_missing_or_makes_no_sense_is_named(command, says, refused):
    assert says in refused(*command.split())


def test_debug_shows_where_and_keeps_the_exit_code(rankwise):
    code, _, err = rankwise("train", "--task", "movis", "--out", "out", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("There is no task 'movis'.")


# ── For machines ──────────────────────────────────────────────────────────────────────────────────


def test_json_of_train_is_one_object_and_the_rest_goes_to_stderr(model, table, rankwise):
    code, out, err = rankwise("train", table, "--model", model, "--out", "out", "--json", *FAST)
    document = json.loads(out)
    assert code == 0
    assert document["out"] == "out"
    assert document["task"] == "reviews"
    assert document["score"] == json.loads(Path("out/result.json").read_text())["score"]
    assert "48 training rows, 12 validation rows." in err
    assert is_plain(out + err)
    again = rankwise("train", table, "--model", model, "--out", "out", "--json", *FAST)
    assert json.loads(again[1]) == document
    assert "training rows" not in again[2]  # nothing was trained again


def test_json_of_evaluate_predict_and_merge_is_one_object(trained, table, rankwise):
    for arguments, keys in (
        (
            ["evaluate", trained, table],
            {"adapter", "n", "accuracy", "mcc", "loss", "quality", "threshold", "notes"},
        ),
        (["evaluate", trained], {"adapter", "n", "accuracy", "mcc", "loss", "quality", "threshold", "notes"}),
        (
            ["predict", trained, table, "--out", "p.jsonl"],
            {"adapter", "n", "unscored", "out", "predicted", "notes"},
        ),
        (["merge", trained, "--out", "merged"], {"adapter", "out", "total_params"}),
    ):
        code, out, err = rankwise(*arguments, "--json")
        assert code == 0, err
        assert json.loads(out).keys() == keys
        assert err.strip()
        assert is_plain(out + err)


def test_a_compressed_adapter_is_smaller_as_good_and_keeps_its_evidence(learned, rankwise):
    held_out = reviews("held_out.jsonl", tiny.reviews(240, seed=5))
    code, said, err = rankwise("compress", learned, held_out, "--out", "smaller")
    assert (code, err) == (0, "")
    assert is_plain(said)
    curve = [line for line in said.splitlines() if " components, " in line]
    assert {line.split()[-1] for line in curve} == {"kept", "small"}
    kept = [int(line.split()[2].replace(",", "")) for line in curve if line.endswith("kept")]
    assert f"4,096 parameters before, {min(kept):,} now. Saved in smaller." in said
    assert min(kept) < 1024
    assert "On 120 held-out rows." in said

    # over what it wrote itself
    code, out, err = rankwise("compress", learned, held_out, "--out", "smaller", "--json")
    document = json.loads(out)
    assert (code, document["adapter_params"], document["notes"]) == (0, min(kept), [])
    assert document["curve"][0]["adapter_params"] < document["adapter_params_before"]
    assert "Saved in smaller." in err

    decisions = json.loads(rankwise("inspect", "smaller", "--json")[1])["decisions"]
    assert len(decisions) == len(document["curve"])
    judged = reviews("judged.jsonl", tiny.reviews(300, seed=6))
    whole, smaller = (
        json.loads(rankwise("evaluate", adapter, judged, "--json")[1]) for adapter in (learned, "smaller")
    )
    assert smaller["accuracy"] >= whole["accuracy"] - 0.02
    own = json.loads(rankwise("compress", learned, "--out", "by-its-own", "--json")[1])
    assert own["rows"] == {"statistics": 60, "held_out": 60}  # its own validation rows, a fifth of all


def test_what_cannot_be_compressed_is_refused(model, table, trained, learned, rankwise, refused):
    assert "Too few labelled rows to tell sizes apart: 60." in refused(
        "compress", trained, table, "--out", "out"
    )
    arguments = ["--model", model, *FAST, "--out", "whole"]
    assert rankwise("train", table, "--method", "full", *arguments)[0] == 0
    assert "whole is a whole model" in refused("compress", "whole", table, "--out", "out")
    assert "whole holds no adapter: there is a whole model in it" in refused("inspect", "whole")
    assert "whole holds no adapter: there is a whole model in it" in refused(
        "export", "whole", "--out", "out"
    )
    assert "There is no folder nowhere" in refused("inspect", "nowhere")


def test_nothing_is_written_over_a_run_or_into_a_folder_of_another_kind(
    model, table, trained, learned, rankwise, refused
):
    def all_files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for folder in (learned, trained) for path in folder.iterdir()}

    before = all_files()
    held_out = reviews("held_out.jsonl", tiny.reviews(100, seed=5))
    for command in (("compress", learned, held_out), ("merge", learned), ("export", learned)):
        assert f"{learned} holds the adapter itself" in refused(*command, "--out", learned)
        assert f"{trained} holds " in refused(*command, "--out", trained)
        assert "held_out.jsonl can't be written" in refused(*command, "--out", "held_out.jsonl")
        assert "held_out.jsonl/x can't be written" in refused(*command, "--out", "held_out.jsonl/x")
    assert all_files() == before
    assert rankwise("merge", learned, "--out", "merged")[0] == 0
    assert rankwise("export", learned, "--out", "exported")[0] == 0
    assert "merged holds something else (config.json)" in refused("export", learned, "--out", "merged")
    assert "exported holds something else (adapter_config.json)" in refused(
        "merge", learned, "--out", "exported"
    )
    for command, out in (
        ("merge", "merged"),
        ("export", "exported"),
    ):  # what it wrote itself it may write again
        assert rankwise(command, learned, "--out", out)[0] == 0


def test_json_of_report_is_one_object_and_the_table_goes_to_stderr(model, rankwise):
    data = glue("data")
    for method in ("full", "lora"):
        arguments = ["--task", "rte", "--data", data, "--model", model, "--method", method, *FAST]
        assert rankwise("train", *arguments, "--out", f"grid/rte.{method}.s0")[0] == 0
    code, out, err = rankwise("report", "grid", "--json")
    assert code == 0
    assert {row["method"] for row in json.loads(out)["rows"]} == {"full", "lora"}
    assert "lora" in err
    assert is_plain(out + err)
    code, shown, _ = rankwise("report", "grid")
    assert "lora" in shown
    code, watched, _ = rankwise("report", "grid", "--watch")  # of a grid that is over
    assert code == 0
    assert watched.startswith("2 of 2 runs are finished: grid/report.html\n")
    assert watched.endswith(shown)


@pytest.mark.slow
def test_a_report_that_cannot_be_written_is_shown_all_the_same(model, rankwise):
    """What stands in the way takes the place of a full disk."""
    command = [
        "compare",
        "--tasks",
        "rte",
        "--data",
        glue("data"),
        "--model",
        model,
        "--seeds",
        1,
        "--out",
        "grid",
        *FAST,
    ]
    Path("grid/report.md/below").mkdir(parents=True)
    code, out, err = rankwise(*command, "--methods", "lora")
    assert code == 2
    assert "Score: mean" in out
    assert "Written" not in out
    assert err.startswith("grid can't be written: ")
    assert err.endswith("The runs are kept; rankwise report grid writes the report again.\n")
    assert not list(Path("grid").glob("*.partial"))
    assert Path("grid/rte.lora.s0/result.json").exists()


def test_json_of_a_refusal_leaves_stdout_empty(rankwise):
    code, out, err = rankwise("train", "--task", "movis", "--out", "out", "--json")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_without_a_terminal_stdout_has_plain_lines_and_stderr_nothing(model, table, rankwise):
    code, out, err = rankwise("train", table, "--model", model, "--out", "out", *FAST)
    assert (code, err) == (0, "")
    assert is_plain(out)
    assert "step 3/3 (100 %)" in out
    assert out.splitlines()[-2].endswith("on 12 validation rows. Saved in out.")
    assert out.splitlines()[-1].startswith("Every validation row got the same prediction")


def test_saving_a_whole_model_draws_no_bars_of_other_libraries(model, table, rankwise):
    code, out, err = rankwise("train", table, "--model", model, "--method", "full", "--out", "out", *FAST)
    assert (code, err) == (0, "")
    assert is_plain(out)


# ── Bad input ─────────────────────────────────────────────────────────────────────────────────────

GOOD = [{"text": f"{word} film", "label": label} for word in tiny.WORDS for label in ("a", "b")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.csv", "", "empty.csv is empty."),
        ("header.csv", "text,label\n", "header.csv has a header and no rows."),
        ("table.csv", '{"text": "good", "label": 1}\n', "table.csv isn't CSV: by its content it is JSONL"),
        ("table.jsonl", "text,label\ngood,1\n", "table.jsonl isn't JSONL: by its content it is CSV"),
        ("table.csv", b"PK\x03\x04\0\0", "table.csv is a zip or Excel file by its content"),
        ("table.parquet", b"PAR1 and no more", "table.parquet is a damaged Parquet file"),
        ("latin.csv", b"text,label\ngood,1\nna\xefve,0\n", "latin.csv isn't UTF-8: byte 0xef on line 3."),
        ("wide.csv", "text,label\ngood,1\n".encode("utf-16"), "wide.csv is UTF-16, not UTF-8."),
        ("binary.csv", b"\x01\0\0\xff\xfe\n", "binary.csv isn't text"),
        ("ragged.csv", "text,label\ngood,1\nbad, very,0\n", "ragged.csv line 3 has 3 fields"),
        ("one.csv", "text,label\ngood,1\nbad,1\n", "one.csv has only the label '1' in column 'label'"),
        ("bare.csv", "text,label\n,\n,\n", "bare.csv has no row with both text and label"),
        ("small.csv", "text,label\ngood,1\nbad,0\n", "small.csv is too small to split validation rows off"),
        (
            "cols.csv",
            "review,label\ngood,1\nbad,0\n",
            "no column 'text'. Its columns: review, label. Say which",
        ),
    ],
)
def test_a_table_that_cannot_be_trained_on_is_refused_with_what_was_found(
    name, content, says, model, refused
):
    write(name, content)
    assert says in refused("train", name, "--model", model, "--out", "out")


def test_a_missing_file_is_refused_with_the_one_that_may_be_meant(model, trained, refused):
    reviews("reviews.jsonl", GOOD)
    near = "There is no file review.jsonl. Nearest in that folder: reviews.jsonl."
    assert near in refused("train", "review.jsonl", "--model", model, "--out", "out")
    assert near in refused(
        "train", "reviews.jsonl", "--validation", "review.jsonl", "--model", model, "--out", "out"
    )
    assert near in refused("evaluate", trained, "review.jsonl")
    assert near in refused("predict", trained, "review.jsonl", "--out", "out.csv")


def test_a_missing_column_is_refused_with_the_flag_that_names_another(model, table, trained, refused):
    assert "Say which with --label." in refused(
        "train", table, "--label", "stars", "--model", model, "--out", "out"
    )
    assert "Say which with --text." in refused("evaluate", trained, table, "--text", "review")
    assert "Say which with --text-pair." in refused(
        "predict", trained, table, "--text-pair", "reply", "--out", "out.csv"
    )
    assert not Path("out.csv").exists()


def test_rows_without_text_or_label_are_counted_and_named_by_line(model, rankwise):
    rows = "text,label\n,a\ngood film,\n" + "".join(f"{row['text']},{row['label']}\n" for row in GOOD)
    write("gaps.csv", rows)
    code, out, _ = rankwise("train", "gaps.csv", "--model", model, "--out", "out", *FAST)
    assert code == 0
    assert "gaps.csv: 1 row without text left out (line 2)." in out
    assert "gaps.csv: 1 row without label left out (line 3)." in out
    code, out, _ = rankwise("evaluate", "out", "gaps.csv")
    assert "gaps.csv: 1 row without text left out (line 2)." in out
    code, out, _ = rankwise("predict", "out", "gaps.csv", "--out", "p.csv", "--json")
    assert json.loads(out)["notes"] == [
        "Columns of gaps.csv with the name of one of the answer's: 'label' is 'input_label'.",
        "gaps.csv: 1 row has no answer: no text in 'text' (line 2).",
    ]


def test_a_label_unseen_in_training_is_refused_by_line(model, table, trained, refused):
    reviews("new.jsonl", [{"text": "good", "label": "positive"}, {"text": "bad", "label": "mixed"}])
    says = "new.jsonl line 2: label 'mixed' is not one of the task's classes: negative, positive."
    assert says in refused("train", table, "--validation", "new.jsonl", "--model", model, "--out", "out")
    assert says in refused("evaluate", trained, "new.jsonl")


def test_validation_rows_found_in_training_are_counted_in_a_warning(model, table, rankwise):
    shared = [json.loads(line) for line in table.read_text().splitlines()[:5]]
    reviews("held.jsonl", [*shared, {"text": "a film never seen", "label": "positive"}])
    code, out, _ = rankwise(
        "train", table, "--validation", "held.jsonl", "--model", model, "--out", "out", *FAST
    )
    assert code == 0
    assert "5 of 6 rows of held.jsonl also stand in reviews.jsonl" in out


def test_an_adapter_is_refused_on_another_base_model(trained, table, refused):
    other = tiny.model_folder(Path("other"), "roberta")
    for command in (["evaluate", trained, table], ["merge", trained, "--out", "out"]):
        message = refused(*command, "--model", other)
        assert f"The adapter in {trained} belongs to another base model" in message
        assert "name that with --model" in message


def test_an_adapter_is_refused_on_a_model_with_other_weights(trained, table, refused):
    tiny.classifier("bert", seed=1).base_model.save_pretrained("twin")
    tiny.tokenizer().save_pretrained("twin")
    message = refused("predict", trained, table, "--model", "twin", "--out", "p.csv")
    assert "it was trained on other weights, " in message
    assert "of its size (and " in message


def test_an_adapter_whose_base_is_gone_asks_where_it_is(model, table, rankwise, refused):
    Path(model).parent.joinpath("moved").symlink_to(model)
    base = Path(model).parent / "moved"
    assert rankwise("train", table, "--model", base, "--out", "run", *FAST)[0] == 0
    base.unlink()
    assert "Say where it is now with --model" in refused("evaluate", "run")
    assert rankwise("evaluate", "run", "--model", model)[0] == 0


def test_files_of_an_adapter_that_are_damaged_are_one_sentence(trained, table, refused):
    copy = Path("copy")
    copy.mkdir()
    for file in trained.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "adapter_model.safetensors").write_bytes(b"short")
    assert "The adapter in copy is damaged" in refused("evaluate", "copy", table)
    (copy / "adapter_config.json").unlink()
    assert "copy" in refused("merge", "copy", "--out", "out")


@pytest.mark.parametrize(
    "command", ["evaluate {} rows.jsonl", "predict {} rows.jsonl --out p.csv", "merge {} --out out"]
)
def test_a_folder_without_anything_trained_says_what_it_is(command, refused):
    Path("empty").mkdir()
    write("file", "text")
    assert "empty holds neither an adapter nor a model" in refused(*command.format("empty").split())
    assert "There is no folder nowhere" in refused(*command.format("nowhere").split())
    assert "file is a file; name the folder" in refused(*command.format("file").split())


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_output_folder_that_cannot_be_written_is_named(out, model, table, trained, refused):
    write("file", "not a folder")
    assert f"{out} can't be written" in refused("train", table, "--model", model, "--out", out)
    assert f"{out} can't be written" in refused("compare", "--tasks", "rte", "--model", model, "--out", out)
    assert f"{out} can't be written" in refused("merge", trained, "--out", out)
    assert Path("file").read_text() == "not a folder"


def test_predictions_are_refused_where_they_cannot_be_written(trained, table, refused):
    write("file", "not a folder")
    rows = reviews("rows.jsonl", tiny.reviews(3))
    content = rows.read_text()
    assert "file/p.csv can't be written" in refused("predict", trained, rows, "--out", "file/p.csv")
    assert "can't be written as '.xlsx'" in refused("predict", trained, rows, "--out", "p.xlsx")
    assert "has no ending" in refused("predict", trained, rows, "--out", "p")
    assert "which would be lost" in refused("predict", trained, rows, "--out", rows)
    assert rows.read_text() == content


def test_an_infinite_loss_stops_the_run_and_its_folder_can_be_used_again(model, table, rankwise):
    arguments = ["train", table, "--model", model, "--out", "out"]
    code, _, err = rankwise(*arguments, "--dtype", "float32", "--lr", "1e30")
    assert code == 2
    assert err.startswith("The loss is nan at step 2 of ")
    assert len(Path("out/steps.jsonl").read_text().splitlines()) == 1
    assert rankwise(*arguments, *FAST)[0] == 0
    assert [json.loads(line)["step"] for line in Path("out/steps.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
    ]


def test_a_run_that_learned_nothing_says_so(model, table, trained, rankwise):
    """Three steps are too few for the tiny model: see the report's tests for runs that do learn."""
    _, said, _ = rankwise("train", table, "--model", model, *FAST, "--out", trained)
    assert "the same prediction: nothing was learned. Try a lower --lr (now 0.001), or more steps." in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed_of_labels", [0, 1], ids=["there is something to learn", "labels are drawn apart"]
)
def test_a_run_that_kept_no_component_says_what_may_help(seed_of_labels, model, rankwise):
    drawn = zip(tiny.reviews(640), tiny.reviews(640, seed=seed_of_labels), strict=True)
    rows = reviews("rows.jsonl", [{**row, "label": other["label"]} for row, other in drawn])
    options = ["--dtype", "float32", "--epochs", "5", "--batch-size", "16", "--lr", "4e-3", "--threads", "1"]
    code, said, _ = rankwise("train", rows, "--model", model, *options, "--prefer", "size", "--out", "out")
    assert code == 0
    kept_none = "Mean rank 0.00, 0 adapter parameters." in said
    assert kept_none == (seed_of_labels == 1)
    assert ("No layer kept a component: the adapters" in said) == kept_none


def test_a_rank_larger_than_the_layer_is_refused_with_its_shape(model, table, refused):
    message = refused("train", table, "--model", model, "--rank", "33", "--out", "out")
    assert "rank 33" in message
    assert "32 × 32" in message
    assert "attention.self.query" in message


def test_texts_beyond_the_models_limit_are_truncated_and_counted(model, rankwise):
    reviews(
        "long.jsonl", [*GOOD, {"text": "good " * 100, "label": "a"}, {"text": "bad " * 100, "label": "b"}]
    )
    code, out, _ = rankwise("train", "long.jsonl", "--model", model, "--out", "out", *FAST)
    assert code == 0
    assert "2 texts were longer than 64 tokens and truncated." in out


def test_more_tokens_than_the_model_takes_are_refused(model, table, refused):
    message = refused("train", table, "--model", model, "--max-length", "65", "--out", "out")
    assert "takes 64 tokens at most; --max-length 65 is more." in message


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch sprung",)


def test_a_pickle_in_a_models_folder_is_not_executed(table, refused):
    model = tiny.model_folder(Path("model"))
    (model / "model.safetensors").unlink()
    with (model / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"bert.pooler.dense.bias": Trap()}, file)
    message = refused("train", table, "--model", model, "--out", "out")
    assert "model" in message
    assert not Path("sprung").exists()


def test_code_that_a_model_brings_along_is_not_executed(table, refused):
    model = tiny.model_folder(Path("model"))
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "code.py").write_text("open('sprung', 'w')")
    refused("train", table, "--model", model, "--out", "out")
    assert not Path("sprung").exists()


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_models_folder_with_a_damaged_file_is_one_sentence(damage, table, refused):
    model = tiny.model_folder(Path("model"))
    (model / damage).write_bytes(b"{")
    assert "model" in refused("train", table, "--model", model, "--out", "out")


def test_a_folder_that_holds_no_model_says_what_it_holds(table, refused):
    reviews("data.jsonl", GOOD)
    message = refused("train", table, "--model", ".", "--out", "out")
    assert "it has no config.json, it holds" in message
    assert "data.jsonl" in message


# ── The same folder again ─────────────────────────────────────────────────────────────────────────


def test_a_finished_run_with_other_settings_is_left_alone(trained, model, table, rankwise):
    before = {file.name: file.stat().st_mtime_ns for file in trained.iterdir()}
    code, _, err = rankwise("train", table, "--model", model, "--out", trained, *FAST, "--rank", "4")
    assert code == 2
    assert "lora.rank: None there, 4 now" in err
    assert {file.name: file.stat().st_mtime_ns for file in trained.iterdir()} == before


def test_a_run_that_never_got_to_a_checkpoint_does_not_bind_the_next_one(model, table, rankwise):
    Path("out").mkdir()
    assert rankwise("train", table, "--model", model, "--targets", "qurey", "--out", "out")[0] == 2
    assert rankwise("train", table, "--model", model, "--targets", "key", "--out", "out", *FAST)[0] == 0
    assert "key" in json.loads(Path("out/adapter_config.json").read_text())["target_modules"]


def test_a_run_continues_with_other_threads(model, table, rankwise, monkeypatch):
    """It ends after its third step, as if killed before its result was written."""
    command = ["train", table, "--model", model, "--out", "out", *FAST[:-1]]
    with monkeypatch.context() as patch:
        patch.setattr("rankwise.runs.run.CHECKPOINT_SECONDS", 0.0)
        patch.setattr("rankwise.runs.run.CHECKPOINT_SHARE", float("inf"))
        patch.setattr(RunFolder, "remove_checkpoint", lambda _: None)
        patch.setattr(RunFolder, "write_result", lambda *_: None)
        rankwise(*command, "1")
    assert not Path("out/result.json").exists()
    code, _, err = rankwise(*command, "2", "--rank", "4")
    assert code == 2
    assert "lora.rank: None there, 4 now" in err
    assert "threads" not in err
    code, out, _ = rankwise(*command, "2")
    assert code == 0
    assert "Continued from step" in out
    assert "It began with --threads 1 and goes on with --threads 2: results may differ by rounding." in out
    assert rankwise(*command, "1")[0] == 0


@pytest.mark.parametrize("name", ["adapter_config.json", "config.json", "model.safetensors"])
def test_a_folder_that_holds_anothers_adapter_or_model_is_left_alone(name, model, table, rankwise):
    Path("theirs").mkdir()
    write(f"theirs/{name}", "{}")
    code, _, err = rankwise("train", table, "--model", model, "--out", "theirs", *FAST)
    assert code == 2
    assert f"theirs holds a model or an adapter ({name}), which would be lost." in err
    assert [path.name for path in Path("theirs").iterdir()] == [name]


def test_what_a_kill_left_beside_a_result_is_removed(model, table, rankwise):
    command = ["train", table, "--model", model, "--out", "out", *FAST]
    assert rankwise(*command)[0] == 0
    held = {path.name for path in Path("out").iterdir()}
    Path("out/checkpoint-3").mkdir()
    Path("out/checkpoint-partial").mkdir()
    write("out/.lock", "")
    write("out/README.md.partial", "half")
    code, out, _ = rankwise(*command)
    assert code == 0
    assert "Saved in out." in out
    assert {path.name for path in Path("out").iterdir()} == held


# ── What is optional ──────────────────────────────────────────────────────────────────────────────


def test_a_cache_that_cannot_be_kept_costs_nothing(model, table, rankwise, monkeypatch):
    write("file", "no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("file").resolve()))
    code, _, err = rankwise(
        "train",
        table,
        "--model",
        model,
        "--out",
        "out",
        *FAST[:2],
        "--epochs",
        "4",
        "--batch-size",
        "16",
        "--threads",
        "2",
    )
    assert (code, err) == (0, "")
    assert Path("out/adapter_model.safetensors").exists()
    assert json.loads(Path("out/result.json").read_text())["speed"]["product_share"] > 0


def test_a_card_that_cannot_be_written_is_a_line(model, table, rankwise):
    Path("out").mkdir()
    Path("out/README.md").mkdir()
    code, out, err = rankwise("train", table, "--model", model, "--out", "out", *FAST)
    assert (code, err) == (0, "")
    assert "The model card couldn't be written. out/README.md" in out
    assert Path("out/result.json").exists()


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_ends_all_the_same(model, table):
    reader, writer = os.pipe()
    os.close(reader)
    child = process(
        "train", table, "--model", model, "--out", "out", *FAST, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert child.communicate()[1] == b""
    assert child.returncode == 0
    assert Path("out/result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [400, 2_000, 20_000])
def test_a_disk_without_space_is_one_line_and_the_run_can_go_on(limit, model, table, rankwise):
    """The limit on a file's size stands in for the disk's."""
    command = ["train", str(table), "--model", model, "--out", "out", *FAST]
    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from rankwise.cli import main\n"
        "main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert re.search(r"can't be written: File too large\.", done.stderr), done.stderr
    assert not Path("out/result.json").exists()
    assert rankwise(*command)[0] == 0


# ── Processes of their own ────────────────────────────────────────────────────────────────────────


def test_help_comes_without_waiting_for_what_trains():
    code = (
        "import sys, rankwise.cli.commands\n"
        "print([name for name in ('torch', 'numpy', 'pyarrow', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_grid_starts_without_waiting_for_torch():
    modules = "rankwise.runs.grid, rankwise.cli.commands, rankwise.report, rankwise.cli.progress"
    code = (
        f"import sys, {modules}, rankwise.runs.recipes, rankwise.tasks.load, rankwise.runs.methods, rankwise.models.hub\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_output_that_nobody_reads_to_its_end_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = process("compare", "--help", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.communicate()[1] == b""


@pytest.mark.slow
def test_a_terminal_gets_a_bar(model, table):
    master, slave = pty.openpty()
    environment = dict(os.environ, TERM="xterm-256color", COLUMNS="120")
    command = [sys.executable, "-m", "rankwise", "train", str(table), "--model", model, "--out", "out", *FAST]
    command[command.index("--epochs") + 1] = "60"
    child = subprocess.Popen(command, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    while select.select([master], [], [], 60)[0]:
        try:
            shown += os.read(master, 65536)
        except OSError:  # the other end is closed
            break
    assert child.wait() == 0
    text = shown.decode()
    assert "━" in text
    assert "\x1b[" in text
    assert "/180 (" in text


def interrupted(command: list[object], how: signal.Signals, sign: Path) -> tuple[int, str]:
    """Starts a command, sends it a signal as soon as there is something in a file, and once more while it leaves."""
    child = process(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not sign.exists() or not sign.stat().st_size:
        assert time.monotonic() < until
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(how)
    assert child.stderr
    err = child.stderr.readline()
    child.send_signal(how)
    err += child.communicate(timeout=60)[1]
    return child.returncode, err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "words"),
    [
        (signal.SIGINT, "Interrupted"),
        (signal.SIGTERM, "Interrupted by SIGTERM"),
        (signal.SIGHUP, "Interrupted by SIGHUP"),
    ],
)
def test_a_run_that_is_interrupted_in_its_first_second_continues(how, words, model, table, rankwise):
    command = ["train", table, "--model", model, *FAST[:2], "--threads", "1", "--epochs", "80", "--out"]
    code, err = interrupted([*command, "out"], how, Path("out/steps.jsonl"))
    assert code == 128 + how
    said = re.fullmatch(
        rf"{words} after step (\d+) of (\d+)\. The same command continues from there\.\n", err
    )
    assert said, err
    assert {path.name for path in Path("out").iterdir()} == {
        "run.json",
        "run.yaml",
        "steps.jsonl",
        "ranks.jsonl",
        "checkpoint-1",
    } - (set() if Path("out/ranks.jsonl").exists() else {"ranks.jsonl"})
    code, out, _ = rankwise(*command, "out")
    assert code == 0
    assert f"Continued from step {said[1]}." in out
    assert rankwise(*command, "undisturbed")[0] == 0
    for name in ("adapter_model.safetensors", "adapter_config.json", "predictions.parquet"):
        assert Path("out", name).read_bytes() == Path("undisturbed", name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_before_its_first_step_leaves_nothing(how, model, table):
    code, err = interrupted(
        ["train", table, "--model", model, "--epochs", "1000", "--out", "out"], how, Path("out/run.json")
    )
    assert code == 128 + how
    assert re.fullmatch(r"Interrupted( by SIGTERM)? before anything was saved\.\n", err), err
    assert not Path("out").exists()


def until_it_listens(child: subprocess.Popen) -> None:
    """Wait until a process has handlers for signals: SIGTERM has none in Python itself, which may take long to begin."""
    for _ in range(6000):
        caught = Path(f"/proc/{child.pid}/status").read_text().split("SigCgt:")[1].split()[0]
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.01)
    raise AssertionError("it never listened to signals")


@pytest.mark.slow
def test_ctrl_c_while_the_program_starts_is_one_line(model, table):
    for tenths in range(6):
        child = process(
            "train",
            table,
            "--model",
            model,
            "--out",
            "out",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until_it_listens(child)
        time.sleep(tenths / 10)
        child.send_signal(signal.SIGINT)
        err = child.communicate(timeout=60)[1]
        assert child.returncode == 130
        assert re.fullmatch(r"Interrupted[\w ]*\.\n", err), err
        assert not Path("out").exists()


@pytest.mark.slow
def test_a_grid_goes_on_after_a_run_whose_loss_is_no_number(model):
    """And its --json is one object on stdout, its progress on stderr, without control characters."""
    arguments = ["--tasks", "rte", "--data", glue("data"), "--model", model, "--seeds", "1", "--epochs", "1"]
    grid = process(
        "compare", *arguments, "--methods", "lora", "full", "--out", "grid", "--json",
        "--batch-size", "16", "--dtype", "float32", "--lr", "1e30",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    out, err = grid.communicate()
    assert grid.returncode == 2
    failed = json.loads(out)["failed"]
    assert list(failed) == ["rte.lora.s0", "rte.full.s0"]
    assert all(why.startswith("The loss is nan at step 2 of 3.") for why in failed.values())
    assert all(f"{name} failed: {why}" in err for name, why in failed.items())
    assert err.splitlines()[-1].startswith("2 of 2 runs failed: The loss is nan")
    assert err.splitlines()[-1].count("The loss is nan") == 1
    assert is_plain(out + err)
    assert not list(Path("grid").glob("*/result.json"))


def test_two_runs_at_once_in_one_folder_are_refused(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(SystemExit) as ended:
        main(["train", "--task", "movies", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "Another rankwise is at work in" in capsys.readouterr().err
