"""A folder that stands alone: the base with the labels' names, the tokenizer, and the adapter beside them.

Transformers loads the base from such a folder and the adapter onto it, so `pipeline("text-classification", model=FOLDER)` answers with the
names. Of a folder that holds an adapter alone it takes the base's own labels. Source: Transformers 5.23, `pipelines/__init__.py` ("complete
model with an embedded adapter").
"""

from pathlib import Path

from rankwise.adapters import load, peft_format
from rankwise.adapters.adapter import Adapter
from rankwise.adapters.formats.format import ExportFormat
from rankwise.errors import RankwiseError
from rankwise.files import make_folder
from rankwise.models import loading
from rankwise.models.account import check_whole
from rankwise.tasks import objectives


def write(adapter: Adapter, out: Path) -> None:
    """Write base, tokenizer and adapter.

    Raises:
        RankwiseError: the base isn't there, or a part of the model would be random.
    """
    source, model, found = load.base_of(adapter, base=None)
    check_whole(found, set(adapter.trained), f"The adapter in {adapter.folder} on {source.name}")
    make_folder(out)
    try:
        with loading.quiet():
            model.save_pretrained(out)
        peft_format.save_tokenizer(source.tokenizer, out)
    except OSError as error:
        raise RankwiseError(
            f"{out} can't be written: {error.strerror or error}. Name another folder with `out=`."
        ) from None
    peft_format.write(adapter, out)


def notes(adapter: Adapter) -> tuple[str, ...]:
    """Say how the folder is loaded."""
    kind = objectives.named(adapter.problem or "classification").pipeline_tag
    return (f"Base, adapter and tokenizer: Transformers' pipeline for {kind} loads this folder by itself.",)


FORMAT = ExportFormat("transformers", write, notes=notes)
