"""An adapter elsewhere: with its tokenizer and label names, in PEFT and Transformers, and on a hub (a local stand-in)."""

import base64
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import tiny
from rankwise.adapters import peft_format
from rankwise.cli import main

NAMES = ("bad", "fine", "good")
OTHERS = ["film", "plot", "the", "a", "very", "not", "dull", "is", "was"]
ROWS = [
    {"text": f"{a} {name} {b}", "label": name, "id": f"{a}-{name}-{b}"}
    for name in NAMES
    for a in OTHERS[:6]
    for b in OTHERS
]
FAST = ["--dtype", "float32", "--batch-size", "16", "--threads", "1", "--lr", "5e-3"]


def run(*arguments: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == code


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base, a table, and an adapter with three labels that was trained on them."""
    place = tmp_path_factory.mktemp("travel")
    tiny.model_folder(place / "base")
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    arguments = ["--method", "lora", "--targets", "all-linear", "--epochs", "16", *FAST]
    run("train", place / "rows.jsonl", "--model", place / "base", "--out", place / "adapter", *arguments)
    return place


def answers(place: Path, adapter: Path, out: Path, *more: object) -> list[dict]:
    run("predict", adapter, place / "rows.jsonl", "--out", out, "--threads", "1", *more)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_the_tokenizer_stands_beside_the_adapter_and_goes_where_it_goes(place, tmp_path):
    run("export", place / "adapter", "--out", tmp_path / "out")
    for folder in (place / "adapter", tmp_path / "out"):
        text = "a fine film , not a dull one"
        assert AutoTokenizer.from_pretrained(folder)(text).input_ids == tiny.tokenizer()(text).input_ids


def test_a_pipeline_on_an_exported_folder_answers_with_the_names(place, tmp_path):
    run("export", place / "adapter", "--format", "transformers", "--out", tmp_path / "whole")
    classify = pipeline("text-classification", model=str(tmp_path / "whole"))
    ours = answers(place, place / "adapter", tmp_path / "p.jsonl")
    assert {row["label"] for row in ours} == set(NAMES)
    for row in ours[:6]:
        (said,) = classify(row["text"])
        assert said["label"] == row["label"]
        assert said["score"] == pytest.approx(row[f"probability_{said['label']}"], abs=1e-5)
    assert answers(place, tmp_path / "whole", tmp_path / "q.jsonl")[0]["label"] == ours[0]["label"]


def test_an_export_names_the_base_that_transformers_loads(place, tmp_path):
    """Not `minilm`, which is a name of rankwise's own."""
    named = replace(peft_format.read(place / "adapter"), base_model="minilm")
    peft_format.write(named, tmp_path / "named")
    run("export", tmp_path / "named", "--out", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(place / "base")
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata()["base_model"] == "minilm"


def test_peft_loads_an_export_without_head(place, tmp_path):
    run("export", place / "adapter", "--no-head", "--out", tmp_path / "out")
    plain = AutoModelForSequenceClassification.from_pretrained(place / "base", num_labels=3)
    model = peft.PeftModel.from_pretrained(plain, str(tmp_path / "out")).eval()
    ours = peft_format.read(place / "adapter")
    path = next(iter(ours.lora))
    layer = model.get_base_model().get_submodule(path)
    assert torch.equal(layer.lora_A["default"].weight, ours.lora[path][0])


def test_names_are_given_to_the_labels_of_an_adapter_made_elsewhere(place, tmp_path, capfd):
    """PEFT's file has no names: LABEL_0, LABEL_1 …"""
    peft_format.write(replace(peft_format.read(place / "adapter"), label_names=None), tmp_path / "peft")
    plain = answers(place, tmp_path / "peft", tmp_path / "p.jsonl")
    named = answers(place, tmp_path / "peft", tmp_path / "q.jsonl", "--label-names", *NAMES)
    assert [NAMES[int(row["label"].removeprefix("LABEL_"))] for row in plain] == [
        row["label"] for row in named
    ]
    run("merge", tmp_path / "peft", "--out", tmp_path / "merged", "--label-names", *NAMES)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert merged.config.id2label == dict(enumerate(NAMES))
    run("export", tmp_path / "peft", "--out", tmp_path / "out", "--label-names", *NAMES)
    assert peft_format.read(tmp_path / "out").label_names == list(NAMES)
    capfd.readouterr()
    asked = [
        "predict",
        tmp_path / "peft",
        place / "rows.jsonl",
        "--out",
        tmp_path / "r.jsonl",
        "--label-names",
    ]
    run(*asked, "bad", "good", code=2)
    assert "--label-names takes 3 different names" in capfd.readouterr().err
    asked[1] = place / "adapter"
    run(*asked, "a", "b", "c", code=2)
    assert "have names of their own: bad, fine, good." in capfd.readouterr().err


# ── A hub ─────────────────────────────────────────────────────────────────────────────────────────


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does to a new repository and one commit, whose files it keeps."""

    def do_POST(self):
        document = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        files: dict[str, bytes] = self.server.files
        if self.headers.get("Authorization") != "Bearer right":
            return self.answer({"error": "Invalid credentials"}, 401)
        if self.path == "/api/repos/create":
            self.server.created = json.loads(document)
            return self.answer({"url": f"{self.server.url}/me/adapter"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.path.startswith("/api/models/me/adapter/preupload/main"):
            asked = json.loads(document)["files"]
            modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
            return self.answer({"files": modes})
        assert self.path.startswith("/api/models/me/adapter/commit/main"), self.path
        for line in document.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        commit = "0" * 40
        return self.answer(
            {"commitOid": commit, "commitUrl": f"{self.server.url}/me/adapter/commit/{commit}"}
        )

    def answer(self, document: dict, status: int = 200) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.url = {}, f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "right")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_adapter_is_pushed_with_tokenizer_and_card_and_without_data(place, hub, tmp_path, capfd):
    run("push", place / "adapter", "me/adapter", "--private", "--model", "tiny/base", "--json")
    told = json.loads(capfd.readouterr().out)
    assert told["url"] == f"{hub.url}/me/adapter"
    assert "private" in (hub.created.get("visibility"), *[k for k, v in hub.created.items() if v is True])
    assert set(told["files"]) == set(hub.files) == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "tiny/base"
    card = ModelCard(hub.files["README.md"].decode())
    assert (card.data.base_model, card.data.library_name) == ("tiny/base", "peft")
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    fetched = answers(place, tmp_path, tmp_path / "p.jsonl", "--model", place / "base")
    here = answers(place, place / "adapter", tmp_path / "q.jsonl")
    for one, other in zip(fetched, here, strict=True):  # the record that stays here says float32
        assert one["logit_good"] == pytest.approx(other["logit_good"], abs=0.1)


def test_a_push_that_cannot_be_is_one_sentence(place, hub, tmp_path, capfd, monkeypatch):
    run("push", place / "adapter", "me/adapter", code=2)
    assert "which others can't load. Give its name on the hub with --model" in capfd.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "wrong")
    run("push", place / "adapter", "me/adapter", "--model", "tiny/base", code=2)
    assert "The hub refuses me/adapter: it doesn't know you: set HF_TOKEN" in capfd.readouterr().err
    run("push", tmp_path, "me/adapter", code=2)
    assert "holds neither an adapter nor a model" in capfd.readouterr().err
    assert hub.files == {}
