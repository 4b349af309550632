"""EleutherAI's harness scores an adapter's folder by its own arguments, as the guide shows."""

import json
import math
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from rankwise.cli import main

pytest.importorskip("lm_eval", reason="EleutherAI's harness isn't installed (pip install lm_eval)")
pytestmark = pytest.mark.slow
TASK = """
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{completion}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
"""


def test_the_harness_loads_an_adapter_and_scores_what_peft_would(tmp_path):
    tokenizer, config = tiny.language_tokenizer(), tiny.config("llama")
    tokenizer.save_pretrained(tmp_path / "model")
    config.vocab_size = len(tokenizer)  # the harness cuts a larger matrix of embeddings to that
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    words = tiny.WORDS
    rows = [
        {"prompt": f"{words[i % 12]} {words[i * 7 % 11]}", "completion": f" {words[i * 7 % 11]} {words[i % 12]}"}
        for i in range(120)
    ]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "train", str(file), "--problem", "generation", "--model", str(tmp_path / "model"), "--method", "lora", "--lr", "0.01",
                "--epochs", "4", "--threads", "1", "--dtype", "float32", "--out", str(tmp_path / "adapter"),
            ]
        )  # fmt: skip
    assert stopped.value.code == 0
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "words.yaml").write_text(TASK.format(file=file))
    said = subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "--model", "hf",
            "--model_args", f"pretrained={tmp_path / 'model'},peft={tmp_path / 'adapter'},dtype=float32",
            "--tasks", "words", "--include_path", str(tmp_path / "tasks"), "--device", "cpu", "--batch_size", "8",
            "--output_path", str(tmp_path / "scores"),
        ],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    (scores,) = (tmp_path / "scores").rglob("results*.json")
    found = json.loads(scores.read_text())["results"]["words"]["perplexity,none"]
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert found != pytest.approx(perplexity(base, rows, tmp_path), rel=0.01)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert found == pytest.approx(perplexity(adapted, rows, tmp_path), rel=1e-4)


def perplexity(model, rows, folder) -> float:
    """The harness's: of whole completions, without an end."""
    tokenizer, found = AutoTokenizer.from_pretrained(folder / "model"), []
    for row in rows:
        prompt, whole = (
            tokenizer(text).input_ids for text in (row["prompt"], row["prompt"] + row["completion"])
        )
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([whole[:-1]])).logits[0].log_softmax(-1)
        found.append(sum(logits[i - 1, whole[i]].item() for i in range(len(prompt), len(whole))))
    return math.exp(-sum(found) / len(found))
