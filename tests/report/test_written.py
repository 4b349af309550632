"""What language models write for the same prompts, side by side."""

import json

import pytest

from planted import finished
from planted_report import shown
from rankwise.report import collect, write


def texts(out, method, *written, seed=0, **entries):
    """A finished run that wrote these texts for the prompts 0, 1, …"""
    folder = finished(out, "e2e", method, seed, **entries)
    folder.write_texts(
        [
            {"idx": i, "prompt": f"prompt {i}", "references": [f"reference {i}", "b", "c", "d"], "text": text}
            for i, text in enumerate(written)
        ]
    )
    return folder


def test_prompts_for_which_all_methods_write_the_same_are_left_out(tmp_path):
    texts(tmp_path, "full", "the same", "a cat")
    texts(tmp_path, "lora", "the same", "a dog")
    texts(tmp_path, "lora", "another", "a horse", seed=1)
    finished(tmp_path, "e2e", "lora:rank=2", 0)  # it wrote nothing
    (one,) = collect(tmp_path).written
    assert (one.task, one.idx, one.prompt) == ("e2e", 1, "prompt 1")
    assert one.references == ("reference 1", "b", "c")
    assert one.texts == {"full": "a cat", "lora": "a dog"}


def test_a_damaged_file_is_said_and_the_others_are_shown(tmp_path):
    texts(tmp_path, "full", "a cat")
    texts(tmp_path, "lora", "a dog")
    damaged = texts(tmp_path, "lora:rank=2", "a cow")
    (damaged.path / "texts.json").write_text('{"texts": [{"idx": 0}]}')
    document = collect(tmp_path)
    assert document.written[0].texts == {"full": "a cat", "lora": "a dog"}
    (note,) = [note for note in document.notes if "isn't shown" in note]
    assert "texts.json" in note
    assert "lacks texts.0.prompt" in note


def test_every_form_of_the_report_has_the_texts(tmp_path):
    texts(tmp_path, "full", "a <b>cat</b>")
    texts(tmp_path, "lora", "a dog")
    write(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt;cat&lt;/b&gt;" in page
    assert "What methods write" in page
    said = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "  - lora: a dog" in said
    assert "  - reference: reference 0" in said
    stored = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert stored["written"][0]["texts"] == {"full": "a <b>cat</b>", "lora": "a dog"}


def test_perplexity_stands_beside_the_cross_entropy(tmp_path):
    for method, loss in (("full", 1.0), ("lora", 1.5)):
        scores = {"cross_entropy": loss, "perplexity": 2.718**loss, "token_accuracy": 0.5, "loss": loss}
        finished(
            tmp_path, "e2e", method, 0, metric="cross_entropy", score=loss, scores={"validation": scores}
        )
    document = collect(tmp_path)
    assert [row.other_metrics["perplexity"] for row in document.rows] == pytest.approx(
        [2.718, 4.481], abs=0.01
    )
    assert "perplexity 2.718" in shown(document)
    write(tmp_path)
    assert "perplexity</button>" in (tmp_path / "report.html").read_text(encoding="utf-8")
