"""The embedded language model: converted from GGUF into an ordinary folder, once."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rankwise import downloads
from rankwise.errors import RankwiseError
from rankwise.models import hub, loading, smollm2

gguf = pytest.importorskip("gguf")
BYTES = [*map(chr, range(33, 127))]


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def write_gguf(path, model: LlamaForCausalLM) -> None:
    """Write a tiny Llama as llama.cpp stores it: heads' rows interleaved, in float32."""
    config, words = model.config, ["<unk>", "<s>", "</s>", "Ġ", *BYTES, "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3, *[1] * (len(words) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        for layer, count in heads.items():
            if layer in name:
                tensor = tensor.view(count, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_converted_model_is_the_same_in_an_ordinary_folder(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=5 + len(BYTES), max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():  # exact in the number type of the folder
        parameter.data = parameter.data.bfloat16().float()
    write_gguf(tmp_path / "tiny.gguf", model)
    folder = smollm2.convert(tmp_path / "tiny.gguf", tmp_path / "folder")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(4, 20).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.model_max_length, tokenizer.decode(tokenizer("ab c").input_ids)) == (64, "ab c")


def test_without_gguf_is_one_sentence(empty_cache, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RankwiseError, match=r"needs the package gguf.*pip install 'rankwise\[generation\]'"):
        hub.find("smollm2")


@pytest.mark.slow
def test_the_model_answers():
    source = loading.locate("smollm2")
    assert source.tokenizer.pad_token == source.tokenizer.eos_token == "<|im_end|>"
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    prompt = source.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert source.tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
