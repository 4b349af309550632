"""Uploads an adapter or a whole model to a hub: its own files, the tokenizer and the card. Data and records of the run stay here."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rankwise.adapters import peft_format, threshold_file
from rankwise.errors import RankwiseError
from rankwise.models import hub
from rankwise.runs.model_card import HUB_NAMES

CARD = "README.md"
ADAPTER = (peft_format.CONFIG, peft_format.WEIGHTS, peft_format.PICKLED, peft_format.CURVE)
MODEL = (hub.CONFIG, "generation_config.json", "model*.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class Pushed:
    """What an upload left on the hub.

    Attributes:
        url: of the repository.
        files: their names.
    """

    url: str
    files: tuple[str, ...]


def push(folder: Path, repository: str, *, private: bool = False, base: str | None = None) -> Pushed:
    """Upload an adapter or a whole model.

    Args:
        folder: holds it.
        repository: `owner/name`; made where there is none.
        private: whether a new one is private.
        base: the base's name on the hub. Default: the one that the adapter names.

    Raises:
        RankwiseError: nothing to upload, a base that nobody else has, or the hub refuses it or can't be reached.
    """
    from huggingface_hub import HfApi

    is_adapter = (folder / peft_format.CONFIG).is_file()
    if is_adapter:
        base = _base(folder, base)
    elif not (folder / hub.CONFIG).is_file():
        raise RankwiseError(
            f"{folder} holds neither an adapter nor a model. Name the folder of a finished run."
        )
    patterns = (*(ADAPTER if is_adapter else ()), *MODEL, *peft_format.TOKENIZER, threshold_file.NAME, CARD)
    found = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    with TemporaryDirectory() as workspace:
        for file in found:
            shutil.copyfile(file, Path(workspace) / file.name)
        if base is not None:
            config = Path(workspace) / peft_format.CONFIG
            fields = {**json.loads(config.read_bytes()), "base_model_name_or_path": base}
            config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _complete_card(Path(workspace) / CARD, repository, base)
        with _hub_errors(repository):
            api = HfApi(library_name="rankwise")
            url = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=url.repo_id,
                folder_path=workspace,
                commit_message=f"Upload {folder.name} with rankwise",
            )
        files = tuple(sorted(file.name for file in Path(workspace).iterdir()))
    return Pushed(str(url), files)


def _base(folder: Path, given: str | None) -> str:
    """Return the name under which others find an adapter's base.

    Raises:
        RankwiseError: it is a folder of this machine.
    """
    adapter = peft_format.read(folder, any_kind=True)
    name = given or adapter.base_model or ""
    name = HUB_NAMES.get(name, name)
    if not name or Path(name).exists():
        raise RankwiseError(
            f"The base of {folder} is {name or 'not named'}, which others can't load. Give its name on the hub with `base=`, or push the "
            "merged model."
        )
    return name


def _complete_card(file: Path, repository: str, base: str | None) -> None:
    """Name the base on a model card; make one where there is none."""
    from huggingface_hub import ModelCard, ModelCardData

    if not file.exists():
        text = "A text classifier." if base is None else f"A LoRA adapter of {base}."
        data = ModelCardData(pipeline_tag="text-classification", tags=["rankwise"])
        file.write_text(
            f"---\n{data.to_yaml()}\n---\n\n# {repository.rpartition('/')[2]}\n\n{text}\n", encoding="utf-8"
        )
    if base is not None:
        card = ModelCard.load(file)
        data: Any = card.data
        data.base_model, data.library_name = base, "peft"
        card.save(file)


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Turn what the hub's client raises into a sentence, in a `with` block."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        with hub.quiet_hub():
            yield
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        why = {
            401: "it doesn't know you: set HF_TOKEN, or call hf auth login",
            403: "you may not write there",
        }
        said = " ".join((getattr(error, "server_message", None) or str(error)).split())
        raise RankwiseError(
            f"The hub refuses {repository}: {why.get(status or 0) or f'{said:.200}'}."
        ) from error
    except LocalTokenNotFoundError as error:
        raise RankwiseError("The hub doesn't know you: set HF_TOKEN, or call hf auth login.") from error
    except OfflineModeIsEnabled as error:
        raise RankwiseError("The hub is switched off by HF_HUB_OFFLINE.") from error
    except Exception as error:  # the hub client raises whatever its HTTP layer raises
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise RankwiseError(f"{repository} can't be uploaded: {why}.") from error
