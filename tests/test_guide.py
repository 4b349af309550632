"""Every command and every Python block of the README and the guide runs, on tiny models and tables.

A page's blocks run from top to bottom in one folder. It holds what a reader is taken to have: `reviews.csv`, `held_out.csv`, `new.jsonl`,
`dishes.jsonl`, `prompts.jsonl`, the folder `glue`, and tiny models in folders named `roberta-base` and `tiny-bert`. Two comments adapt
what follows them:

    <!-- test: OPTIONS -->        take the place of these options in each command of the next block
    <!-- test first: COMMAND -->  runs before the next block
"""

import csv
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tiny
from rankwise.cli import main
from rankwise.cli.commands import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
COMMENT_OR_BLOCK = re.compile(
    r"^<!-- test(?P<first> first)?: (?P<asked>.*?) -->$|^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A fenced block, and what the comments before it ask for."""

    language: str
    code: str
    options: list[str]
    first: list[str]

    @property
    def commands(self) -> list[list[str]]:
        lines = self.code.replace("\\\n", " ").splitlines()
        return [command for line in lines if (command := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    found, options, first = [], [], []
    for match in COMMENT_OR_BLOCK.finditer(page.read_text(encoding="utf-8")):
        if match["asked"] is None:
            found.append(Block(match["language"], match["code"], options, first))
            options, first = [], []
        elif match["first"]:
            first = shlex.split(match["asked"])
        else:
            options = shlex.split(match["asked"])
    return found


def replaced(command: list[str], options: list[str]) -> list[str]:
    """The command with these options, in the place of its own of the same name."""
    names = {word for word in options if word.startswith("--")}
    kept, dropping = [], False
    for word in command:
        if word.startswith("--"):
            dropping = word in names
        if not dropping:
            kept.append(word)
    return kept + options


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The folder that a page's commands run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    tiny.model_folder(tmp_path / "tiny-bert")
    tiny.model_folder(tmp_path / "roberta-base", "roberta")
    tiny.language_model_folder(tmp_path / "HuggingFaceTB" / "SmolLM2-135M")
    for name, n, seed in (("reviews.csv", 240, 0), ("held_out.csv", 240, 1)):
        with (tmp_path / name).open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["review", "stars"])
            table.writerows((row["text"], row["label"]) for row in tiny.reviews(n, seed))
    for name, n, seed in (("entities.jsonl", 160, 0), ("new_entities.jsonl", 8, 1)):
        said = [row["text"].split() for row in tiny.reviews(n, seed)]
        tagged = [
            {"tokens": words, "tags": ["B-FILM" if w == "film" else "O" for w in words]} for words in said
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in tagged))
    new = [json.dumps({"review": row["text"]}) + "\n" for row in tiny.reviews(8, 2)]
    (tmp_path / "new.jsonl").write_text("".join(new))
    dishes = [{"prompt": f"the film is {word}", "completion": "very good"} for word in tiny.WORDS * 2]
    (tmp_path / "dishes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dishes))
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "the film"}) + "\n")
    for split, n, seed in (("train", 64, 0), ("validation", 16, 1)):
        rows = tiny.reviews(n, seed)
        columns = {
            "sentence1": [row["text"] for row in rows],
            "sentence2": ["the film" for _ in rows],
            "label": [int(row["label"] == "negative") for row in rows],
            "idx": list(range(n)),
        }
        (tmp_path / "glue" / "rte").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "glue" / "rte" / f"{split}.parquet")
    return tmp_path


def rows(n: int, seed: int) -> list[dict[str, str | int]]:
    """Rows under both of the names that pages give to their columns."""
    labelled = ((row["text"], int(row["label"] == "positive")) for row in tiny.reviews(n, seed))
    return [{"text": text, "review": text, "label": label, "stars": label} for text, label in labelled]


def run(command: list[str]) -> None:
    program, *arguments = command
    if program == "rankwise":
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0, shlex.join(command)
    elif program == "torchrun":
        subprocess.run([sys.executable, "-m", "torch.distributed.run", *arguments], check=True)
    elif program == "make":  # what it would do: the targets themselves take minutes
        subprocess.run(["make", "--dry-run", "--directory", str(ROOT), *arguments], check=True)
    elif command[:2] == ["pip", "install"]:  # continuous integration installs the wheel
        (asked,) = arguments[1:]
        assert re.sub(r"\[.*\]", "", asked) == "rankwise"
    else:
        raise AssertionError(f"Nothing here runs {program}.")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # a page may use what others warn of
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(page, place):
    names = {"train": rows(64, 0), "held_out": rows(64, 1), "validation": rows(64, 1)}
    for block in blocks(page):
        if block.first:
            run(block.first)
        if block.language == "python":
            exec(compile(block.code, str(page), "exec"), names)
        elif block.language == "console":
            for command in block.commands:
                run(replaced(command, block.options))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_within_a_pages_text_are_taken_by_the_command_line(page):
    for written in re.findall(r"`rankwise ([^`]+)`", page.read_text(encoding="utf-8")):
        command, *arguments = shlex.split(written)
        assert command in list(app)
        if arguments:
            app.parse_args([command, *arguments], exit_on_error=False, print_error=False)


USE_OF_WHAT_CONTRIBUTING_ADDS = """
import torch
from transformers import AutoModelForSequenceClassification

import rankwise
from rankwise.runs import methods
from rankwise.tasks import objectives, registry

assert registry.named("stance").metrics == ("macro_f1", "accuracy")
assert methods.named("norms").label == "Layer norms"
assert objectives.named("robust-regression").example_losses(torch.zeros(1, 1), torch.full((1,), 3.0)).item() == 2.5

model = AutoModelForSequenceClassification.from_pretrained("roberta-base")
rankwise.adapt(model)
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
inputs, labels = torch.randint(4, 16, (64, 8)), torch.randint(0, 2, (64,))
losses = lambda: torch.nn.functional.cross_entropy(model(inputs).logits, labels, reduction="none")
controller = rankwise.RankController(model, torch.no_grad()(losses), 5, optimizer, rule="magnitude")
for _ in range(5):
    losses().mean().backward()
    optimizer.step()
    controller.step()
assert controller.decisions
rankwise.save(model, "adapter")

rankwise.adapt(plain := AutoModelForSequenceClassification.from_pretrained("roberta-base"), rank=2)
rankwise.save(plain, "plain")
rankwise.export("plain", "plain.npz", format="npz")
assert len(np.load("plain.npz").files) == 4
"""


@pytest.mark.slow
def test_each_of_the_six_things_that_contributing_adds_works(place):
    added = [block.code for block in blocks(ROOT / "CONTRIBUTING.md") if block.language == "python"]
    assert len(added) == 6
    (place / "add.py").write_text("\n".join([*added, USE_OF_WHAT_CONTRIBUTING_ADDS]))
    done = subprocess.run([sys.executable, "add.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_blocks_of_the_pages_are_of_a_kind_that_runs():
    """Text is what other programs are started with, or what needs a hub; Bash needs a cluster; JSON is rows of a file."""
    found = {(page.name, block.language) for page in PAGES for block in blocks(page)}
    assert {language for _, language in found} <= {"bash", "console", "json", "python", "text"}
    for block in (block for page in PAGES for block in blocks(page) if block.language == "json"):
        assert all(json.loads(line) for line in block.code.splitlines())
    fences = sum(page.read_text().count("\n```") for page in PAGES)
    assert fences == 2 * sum(len(blocks(page)) for page in PAGES)


def test_extras_that_pages_name_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for page in PAGES for extra in _extras(page.read_text())}
    assert named
    assert named <= set(extras)


def _extras(text: str) -> Iterator[str]:
    for match in re.finditer(r"rankwise\[([\w,]+)\]", text):
        yield from match[1].split(",")


def test_options_of_a_comment_take_the_place_of_a_commands_own():
    command = shlex.split("rankwise compare --tasks sst2 rte --seeds 5 --out runs")
    assert replaced(command, ["--seeds", "1", "--tasks", "rte"]) == shlex.split(
        "rankwise compare --out runs --seeds 1 --tasks rte"
    )
