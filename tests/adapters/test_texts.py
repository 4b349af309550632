"""Texts that a trained language model writes: those of PEFT on the same base, scored against the references of each prompt."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sacrebleu
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from rankwise.adapters import predict
from rankwise.errors import RankwiseError
from rankwise.inference_options import TextOptions

ROWS = [
    ("the film", "is good"), ("the film", "is very good"), ("a plot", "was dull"), ("not bad", "is fine"),
    ("the plot was", "very fine"), ("a dull film", "was bad"),
]  # fmt: skip
REFERENCES = {"the film": ["is good", "is very good"], "a plot": ["was dull"], "not bad": ["is fine"]}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in ROWS))
    return file


@pytest.fixture(
    scope="module", params=["lora:targets=all-linear", "peft:prefix,num_virtual_tokens=4", "full"]
)
def run(request, rows, tmp_path_factory):
    from rankwise.cli import main

    folder = tmp_path_factory.mktemp("run")
    base = tiny.language_model_folder(folder / "base")
    command = f"train {rows} --problem generation --model {base} --method {request.param} --validation {rows} --dtype float32"
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--lr", "3e-2", "--epochs", "20", "--out", str(folder / "run"), "--json"])
    assert stopped.value.code == 0
    return folder / "run"


def by_peft(run) -> list[str]:
    """What Transformers and PEFT write for each prompt alone."""
    tokenizer = AutoTokenizer.from_pretrained(run.parent / "base")
    if (run / "adapter_config.json").exists():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(run.parent / "base"), run)
    else:
        model = AutoModelForCausalLM.from_pretrained(run)
    texts = []
    for prompt, _ in ROWS:
        ids = torch.tensor([tokenizer(prompt).input_ids[:-1]])
        options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
        written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        texts.append(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return texts


def test_texts_are_those_of_peft_and_are_scored_by_prompt(run, rows, tmp_path):
    trained, options = predict.open_trained(run), TextOptions(max_new_tokens=8, scores=("bleu", "exact"))
    found = predict.predict_file(trained, rows, tmp_path / "out.parquet", options=options)
    written = pq.read_table(tmp_path / "out.parquet")
    assert written["generated"].to_pylist() == by_peft(run)
    assert written.column_names == ["prompt", "completion", "generated", "reason"]
    assert len(set(written["generated"].to_pylist())) > 1
    scores = predict.evaluate(trained, rows, options=options)
    texts = dict(zip([prompt for prompt, _ in ROWS], written["generated"].to_pylist(), strict=True))
    several = {prompt: [c for p, c in ROWS if p == prompt] for prompt in texts}
    streams = [[one[i] if i < len(one) else None for one in several.values()] for i in range(2)]
    bleu = sacrebleu.BLEU().corpus_score(list(texts.values()), streams).score
    assert scores["bleu"] == found["predicted"]["bleu"] == pytest.approx(bleu)
    right = [texts[prompt] in several[prompt] for prompt in texts]
    assert scores["exact"] == 100 * sum(right) / len(right)
    assert scores["perplexity"] > 1


def test_references_are_a_column_or_left_out(run, tmp_path):
    trained, table = predict.open_trained(run), pa.table({"prompt": list(REFERENCES)})
    pq.write_table(table, tmp_path / "prompts.parquet")
    bare = predict.predict_file(trained, tmp_path / "prompts.parquet", tmp_path / "a.parquet", options=GREEDY)
    assert list(bare["predicted"]) == ["words a text"]
    with pytest.raises(RankwiseError, match="`scores=` needs references, and these rows have none"):
        predict.predict_file(
            trained,
            tmp_path / "prompts.parquet",
            tmp_path / "b.parquet",
            options=TextOptions(scores=("bleu",)),
        )
    several = table.append_column("references", [list(REFERENCES.values())])
    pq.write_table(several, tmp_path / "several.parquet")
    asked = TextOptions(max_new_tokens=8, scores=("exact",))
    with_them = predict.predict_file(
        trained, tmp_path / "several.parquet", tmp_path / "c.parquet", options=asked
    )
    assert "exact" in with_them["predicted"]
    assert predict.evaluate(trained, tmp_path / "several.parquet")["n"] == 4  # a row for each reference
    several, alone = (pq.read_table(tmp_path / file)["generated"] for file in ("c.parquet", "a.parquet"))
    assert several.equals(alone)


def test_a_row_without_a_text_has_a_reason(run, tmp_path):
    rows = [{"prompt": "the film"}, {"prompt": ""}, {"prompt": "good " * 60}, {"prompt": [{"role": "user"}]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = predict.predict_file(
        predict.open_trained(run), tmp_path / "rows.jsonl", tmp_path / "out.jsonl", options=GREEDY
    )
    assert (done["n"], done["unscored"]) == (4, 3)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["generated"] is None for row in written] == [False, True, True, True]
    reasons = [
        "no text in 'prompt'",
        "61 tokens and max_new_tokens=8 are more than the 64",
        "message 1 (user) has no content",
    ]
    assert all(part in row["reason"] for part, row in zip(reasons, written[1:], strict=True))


GREEDY = TextOptions(max_new_tokens=8)


def test_options_of_texts_are_refused_for_classifiers(tmp_path):
    folder = tmp_path / "model"
    tiny.classifier("bert").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    trained = predict.open_trained(folder)
    with pytest.raises(RankwiseError, match="`num_beams=` is for language models"):
        predict.evaluate(trained, tmp_path / "x.csv", options=TextOptions(num_beams=2))
