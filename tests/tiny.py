"""Tiny models of every family with random weights, and a word-level tokenizer: what tests train in seconds."""

import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

WORDS = ["good", "bad", "film", "plot", "the", "a", "very", "not", "dull", "fine", "is", "was"]
VOCABULARY = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}

_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {
    **_BERT,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    **_IDS,
}

CONFIGS: dict[str, hf.PreTrainedConfig] = {
    "bert": hf.BertConfig(**_BERT, vocab_size=100, max_position_embeddings=64),
    "roberta": hf.RobertaConfig(**_BERT, vocab_size=100, max_position_embeddings=66, **_IDS),
    "xlm-roberta": hf.XLMRobertaConfig(**_BERT, vocab_size=100, max_position_embeddings=66, **_IDS),
    "electra": hf.ElectraConfig(**_BERT, embedding_size=16, vocab_size=100, max_position_embeddings=64),
    "distilbert": hf.DistilBertConfig(
        dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=100, max_position_embeddings=64
    ),
    "albert": hf.AlbertConfig(**_BERT, embedding_size=16, vocab_size=100, max_position_embeddings=64),
    "mpnet": hf.MPNetConfig(**_BERT, vocab_size=100, max_position_embeddings=66, **_IDS),
    "deberta-v2": hf.DebertaV2Config(
        **_BERT, vocab_size=100, max_position_embeddings=64, relative_attention=True, pos_att_type=["p2c", "c2p"]
    ),
    "modernbert": hf.ModernBertConfig(
        **_BERT, vocab_size=100, max_position_embeddings=64, cls_token_id=1, sep_token_id=2, **_IDS
    ),
    "gpt2": hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=100, n_positions=64, **_IDS),
    "opt": hf.OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=32,
        vocab_size=100, max_position_embeddings=64, **_IDS,
    ),
    "llama": hf.LlamaConfig(**_LLAMA),
    "qwen2": hf.Qwen2Config(**{k: v for k, v in _LLAMA.items() if k != "head_dim"}),
    "gemma": hf.GemmaConfig(**_LLAMA),
    "mistral": hf.MistralConfig(**_LLAMA, sliding_window=4),
}  # fmt: skip
PACKED = [family for family in CONFIGS if family not in ("deberta-v2", "mpnet")]
"""Families whose models can be trained packed."""

_SHORT_LLAMA = {key: value for key, value in _LLAMA.items() if key != "head_dim"}
LANGUAGE_MODELS: dict[str, hf.PreTrainedConfig] = {
    **{family: CONFIGS[family] for family in ("llama", "gemma", "mistral", "gpt2", "opt")},
    "qwen3": hf.Qwen3Config(**_LLAMA, tie_word_embeddings=True),
    "phi": hf.PhiConfig(**_SHORT_LLAMA),
}


def language_model(family: str, seed: int = 0) -> hf.PreTrainedModel:
    """A causal language model of a family, in eval mode, with every weight random."""
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(copy.deepcopy(LANGUAGE_MODELS[family]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def classifier(family: str, num_labels: int = 2, seed: int = 0, **settings: Any) -> hf.PreTrainedModel:
    """A classifier of a family, in eval mode, with every weight random (also those a fresh model has at 0 or 1).

    `settings` take the place of the family's in `CONFIGS`, and of what its config derives from them.
    """
    torch.manual_seed(seed)
    derived = {"id2label", "label2id"} | ({"layer_types"} if settings else set())
    known = {key: value for key, value in CONFIGS[family].to_dict().items() if key not in derived}
    config = type(CONFIGS[family])(**{**known, "num_labels": num_labels, **settings})
    model = hf.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def tokenizer() -> hf.PreTrainedTokenizerFast:
    """Splits at spaces; knows `WORDS`."""
    words = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_max_length=64,
    )


def language_tokenizer() -> hf.PreTrainedTokenizerFast:
    """The same as a language model's: a text begins with a token, and `[SEP]` ends it where it is asked for."""
    words = tokenizer()
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", 1)]
    )
    words.eos_token = "[SEP]"
    return words


def model_folder(folder: Path, family: str = "bert") -> Path:
    """A pretrained body without a head, and its tokenizer, as a Transformers folder."""
    classifier(family).base_model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def config(family: str) -> hf.PreTrainedConfig:
    """A family's config of one's own: trainers set fields of what they get (`use_cache`)."""
    return copy.deepcopy(CONFIGS[family])


def language_model_folder(folder: Path) -> Path:
    """A tiny Llama with random weights, and its tokenizer."""
    torch.manual_seed(0)
    hf.AutoModelForCausalLM.from_config(config("llama")).save_pretrained(folder)
    words = tokenizer()
    words.eos_token = "[SEP]"
    words.save_pretrained(folder)
    return folder


def reviews(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Texts whose label is a word in them: anything that trains at all learns it."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n):
        length = int(torch.randint(2, 9, (), generator=generator))
        words = [WORDS[i] for i in torch.randint(2, len(WORDS), (length,), generator=generator).tolist()]
        good = bool(torch.randint(2, (), generator=generator))
        words.insert(int(torch.randint(length, (), generator=generator)), "good" if good else "bad")
        rows.append({"text": " ".join(words), "label": "positive" if good else "negative"})
    return rows


def sst2_folder(folder: Path, train: int, validation: int) -> Path:
    """Write reviews as the files of SST-2 into a folder of GLUE's tasks, and return it.

    Args:
        folder: of the tasks.
        train, validation: rows of each split.
    """
    (folder / "sst2").mkdir(parents=True)
    for split, n, seed in (("train", train, 0), ("validation", validation, 1)):
        rows = reviews(n, seed)
        columns = {
            "sentence": [row["text"] for row in rows],
            "label": [int(row["label"] == "positive") for row in rows],
            "idx": list(range(n)),
        }
        pq.write_table(pa.table(columns), folder / "sst2" / f"{split}.parquet")
    return folder
