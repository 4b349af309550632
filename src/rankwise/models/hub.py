"""Where a model's files are: an embedded one, a folder, the local cache, or the hub.

The grid's own process calls this before it starts any run, so that a misspelt model is reported once and at once. So it imports nothing
slow.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rankwise import downloads
from rankwise.errors import RankwiseError, nearest
from rankwise.models import smollm2

DEFAULT = "minilm"
"""The name of the embedded classifier, all-MiniLM-L6-v2."""
LANGUAGE_MODEL = "smollm2"
"""The name of the embedded language model, SmolLM2-135M-Instruct."""
EMBEDDED: dict[str, Callable[[], Path]] = {
    DEFAULT: downloads.model_folder,
    LANGUAGE_MODEL: smollm2.folder,
}
"""What returns the folder of an embedded model, by name. It is fetched if necessary."""
SCRATCH: dict[str, dict[str, Any]] = {
    "scratch:small": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
}
"""Encoders with random weights, by name: BERT's architecture in these sizes, with minilm's tokenizer."""
CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
HUB_SECONDS = 10.0


def find(name: str) -> str:
    """Return the folder or hub name of a model, after checking that it is there. An embedded model is fetched if necessary.

    Args:
        name: in `EMBEDDED` or `SCRATCH`, a folder, or a Hugging Face name. A model in the local cache is taken without asking the hub.

    Raises:
        RankwiseError: there is no such model, or it can't be reached.
    """
    if name in EMBEDDED or name in SCRATCH:
        return str(EMBEDDED.get(name, EMBEDDED[DEFAULT])())
    if name.startswith("scratch:"):
        raise RankwiseError(f"There is no model {name!r}.{nearest(name, SCRATCH)}")
    folder = Path(name)
    if folder.is_dir():
        if (folder / CONFIG).is_file():
            return name
        held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise RankwiseError(
            f"The folder {name} holds no Transformers model: it has no {CONFIG}, it holds {held}."
        )
    if folder.is_file():
        raise RankwiseError(f"{name} is a file; a model is a folder with {CONFIG}, weights and tokenizer.")
    if not _cached(name) and (why := _not_on_the_hub(name)):
        raise RankwiseError(
            f"There is no model {name!r}: no folder of that name, not in the local cache, and {why}."
            f"{nearest(name, _known(folder))}"
        )
    return name


def _cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, CONFIG), str)
    except HFValidationError:
        return False


def _not_on_the_hub(name: str) -> str | None:
    """Return why the hub doesn't give a model, None if it does. The hub is asked once, without retries."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        with quiet_hub():
            get_hf_file_metadata(hf_hub_url(name, CONFIG), timeout=HUB_SECONDS)
    except HFValidationError:
        return "no name that the hub could have"
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        return "not on the hub, or private" if status in (401, 403, 404) else f"the hub answers {status}"
    except OfflineModeIsEnabled:
        return "the hub is switched off by HF_HUB_OFFLINE"
    except Exception as error:  # the hub client raises whatever its HTTP layer raises
        return f"the hub can't be reached ({' '.join(str(error).split())[:100] or type(error).__name__})"
    return None


def _known(folder: Path) -> list[str]:
    """Return names that could have been meant: the embedded models, model folders beside that path, and cached models."""
    from huggingface_hub.constants import HF_HUB_CACHE

    names = [*EMBEDDED, *SCRATCH]
    with contextlib.suppress(OSError):
        parent = folder.parent
        names += [str(parent / entry.parent.name) for entry in sorted(parent.glob(f"*/{CONFIG}"))]
    with contextlib.suppress(OSError):
        cached = sorted(Path(HF_HUB_CACHE).glob("models--*"))
        names += [entry.name.removeprefix("models--").replace("--", "/") for entry in cached]
    return names[:20]


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the hub client's retries and warnings off the terminal; the caller reports the outcome."""
    from huggingface_hub.utils import logging as hub_logging

    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
