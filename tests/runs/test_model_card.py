"""The model card, as the hub's own client reads it."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import tiny
from rankwise.cli import main
from rankwise.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    base = tiny.model_folder(tmp_path / "tiny-bert")
    rows = [
        {**row, "label": {"positive": "yes: it is", "negative": "nö"}[row["label"]]}
        for row in tiny.reviews(60)
    ]
    Path("reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "train",
                "reviews.jsonl",
                "--model",
                str(base),
                "--out",
                "adapter",
                "--epochs",
                "1",
                "--lr",
                "1e-3",
            ]
        )
    assert stopped.value.code == 0
    return Path("adapter")


def test_an_adapters_card_tells_the_hub_and_a_reader_what_the_run_recorded(folder):
    card, result = ModelCard.load(folder / "README.md"), RunFolder(folder).read_result()
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.base_model is None  # a folder of this machine's is nothing to the hub
    (evaluation, *_) = card.data.eval_results
    assert evaluation.metric_type == "accuracy"
    assert evaluation.metric_value == pytest.approx(result["score"], abs=1e-4)
    assert "nö, yes: it is" in card.text
    assert f"{result['score']:.4f}" in card.text
    assert f"| lr | {result['lr']} |" in card.text
    assert str(Path.cwd()) not in card.content
