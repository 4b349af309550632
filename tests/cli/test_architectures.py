"""Architectures that are not like BERT: trained, or refused by name."""

import json

import pytest
import transformers as hf

import tiny
from rankwise.bench.families import SMALL
from rankwise.cli import main

SIZES = {
    **SMALL, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "num_decoder_layers": 2,
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_experts": 2, "n_layer": 2, "n_head": 4,
    "d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 1, "num_cross_attention_heads": 4,
    "num_self_attention_heads": 4, "d_inner": 64, "mamba_d_state": 4,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["t5", "bart", "canine", "perceiver", "jamba"])
def test_an_architecture_is_trained_or_refused_by_name(tmp_path, capfd, model_type):
    known = hf.AutoConfig.for_model(model_type)
    config = hf.AutoConfig.for_model(model_type, **{k: v for k, v in SIZES.items() if hasattr(known, k)})
    config.decoder_start_token_id = 0
    hf.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    rows = [{**row, "text": row["text"] + " [SEP] fine" * (i % 3)} for i, row in enumerate(tiny.reviews(40))]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [
        "--epochs",
        "1",
        "--threads",
        "1",
        "--dtype",
        "float32",
        "--method",
        "lora:rank=2,targets=all-linear",
    ]
    for command in (
        ["train", f"{tmp_path}/t.jsonl", "--model", f"{tmp_path}/model", "--out", f"{tmp_path}/out", *asked],
        ["plan", "--model", f"{tmp_path}/model/config.json", "--lengths", "8", "--methods", "full"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code in ({0} if model_type in ("t5", "bart") else {0, 2}), capfd.readouterr().err
