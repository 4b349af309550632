"""`--config`: a run's own file asks for the same run again, and what a file says wrong is refused by name."""

import json
from pathlib import Path

import pytest
import yaml

import tiny
from rankwise.cli import main
from rankwise.cli.commands import app
from rankwise.cli.config_file import with_file

FAST = ["--dtype", "float32", "--batch-size", "16", "--threads", "1"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    return tmp_path


@pytest.fixture
def refused(capfd):
    def call(content: str, *arguments: str, name: str = "o.yaml") -> str:
        Path(name).write_text(content, encoding="utf-8")
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--config", name])
        assert stopped.value.code == 2
        return capfd.readouterr().err

    return call


def told(capfd, *arguments: str) -> dict:
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--json"])
    assert stopped.value.code == 0, capfd.readouterr().err
    return json.loads(capfd.readouterr().out)


def test_a_runs_own_file_asks_for_the_same_run_again(capfd):
    tiny.model_folder(Path("base"))
    Path("rows.csv").write_text(
        "text,stars\n" + "".join(f"{r['text']},{r['label']}\n" for r in tiny.reviews(60))
    )
    options = ["--label", "stars", "--model", "base", "--epochs", "2", "--rslora", "--method", "lora", *FAST]
    first = told(capfd, "train", "rows.csv", *options, "--out", "first")
    written = yaml.safe_load(Path("first/run.yaml").read_text())
    assert written == {
        "files": ["rows.csv"], "method": "lora", "seed": 0, "label": ["stars"], "model": "base", "dtype": "float32",
        "threads": 1, "rslora": True, "epochs": 2.0, "batch_size": 16, "out": "first",
    }  # fmt: skip
    again = told(capfd, "train", "--config", "first/run.yaml")
    assert again == first  # it was finished
    second = told(capfd, "train", "--config=first/run.yaml", "--out", "second")
    same = ("adapter_model.safetensors", "adapter_config.json", "predictions.parquet")
    assert all(Path("first", name).read_bytes() == Path("second", name).read_bytes() for name in same)
    assert second["score"] == first["score"]
    other = told(capfd, "train", "--config", "first/run.yaml", "--out", "third", "--epochs", "1", "--seed=3")
    assert (other["steps"], other["seed"]) == (first["steps"] // 2, 3)
    Path("p.toml").write_text('adapter = "first"\nfile = "rows.csv"\nout = "p.csv"\nthreads = 1\n')
    assert told(capfd, "predict", "--config", "p.toml")["n"] == 60
    assert told(capfd, "predict", "second", "--config", "p.toml", "--out", "q.csv")["out"] == "q.csv"


def test_a_file_becomes_a_command_line():
    Path("o.yaml").write_text(
        "# a comment\ntasks: [sst2, rte]\nmethods:\n  - lora:rank=4\n  - full\nseeds: 3\nkeep-models: yes\nrslora: off\n"
        "out: 'no'\nlr: 1e-3\nmax_length:\nmodel: ~\nrecipe: poster\n"
    )
    line = with_file(app, ["compare", "--seeds", "2", "--config", "o.yaml", "--json"])
    assert line == [
        "compare", "--seeds", "2", "--json", "--tasks=sst2", "--tasks=rte", "--methods=lora:rank=4", "--methods=full",
        "--keep-models", "--out=no", "--lr=1e-3", "--recipe=poster",
    ]  # fmt: skip
    _, bound, _ = app.parse_args(line)[:3]
    config = bound.arguments["config"]
    assert (config.tasks, config.methods, config.seeds) == (("sst2", "rte"), ("lora:rank=4", "full"), 2)
    assert (config.keep_models, config.train.lr, str(config.out)) == (True, 0.001, "no")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "epochs: 1\nepoch: 2\n",
            "o.yaml line 2: rankwise train has no option 'epoch'. Did you mean 'epochs'?",
        ),
        ("train_file: a.csv\n", "has no option 'train_file'"),
        ("epochs: 1\nepochs: 2\n", "o.yaml has 'epochs' twice"),
        ("epochs: {a: 1}\n", "o.yaml line 1: epochs holds more than a value"),
        ("epochs: [1, 2]\n", "epochs takes one value, not a list"),
        ("rslora: perhaps\n", "rslora is true or false, not 'perhaps'"),
        ("- epochs\n", "holds no options"),
        ("epochs: [1\n", "o.yaml can't be read"),
        ("epochs: x\n", "--epochs"),
    ],
)
def test_what_a_file_says_wrong_is_named(refused, content, says):
    assert says in refused(content, "train", "--out", "out")
    assert not Path("out").exists()


def test_odd_uses_are_named(refused, capfd):
    assert "o.toml can't be read" in refused("epochs = \n", "train", "--out", "out", name="o.toml")
    assert "stands behind a command" in refused("epochs: 1\n")
    for arguments in (["train", "--config"], ["train", "--config", "o.yaml", "--config", "o.yaml"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "--config takes one YAML or TOML file" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--config", "none.yaml"])
    assert "none.yaml can't be read" in capfd.readouterr().err
