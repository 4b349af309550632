"""A look at rows before anything is trained, their texts counted in tokens."""

from rankwise.errors import RankwiseError
from rankwise.files import cache_folder
from rankwise.models import loading
from rankwise.models.hub import DEFAULT, LANGUAGE_MODEL
from rankwise.tasks import objectives
from rankwise.tasks.encoding import encode
from rankwise.tasks.look import Look, look
from rankwise.tasks.splits import Dataset


def look_at(dataset: Dataset, model: str | None = None, max_length: int | None = None) -> Look:
    """Look at rows with the lengths that a model's tokenizer gives them.

    Args:
        dataset: the rows.
        model: whose tokens are counted. Default: the embedded model, or words where it can't be fetched.
        max_length: tokens that a text is truncated to. Default: the model's own limit.

    Raises:
        RankwiseError: the model that was asked for can't be loaded.
    """
    task_type = objectives.named(dataset.task.problem).task_type
    default = LANGUAGE_MODEL if task_type == "CAUSAL_LM" else DEFAULT
    try:
        source = loading.locate(model or default, max_length, task_type)
    except RankwiseError:
        if model is not None or max_length is not None:
            raise
        return look(dataset)
    splits = {"train": dataset.train, **dataset.validation}
    encoded = {
        split: encode(rows, source.tokenizer, source.max_length, cache_folder())
        for split, rows in splits.items()
    }
    return look(
        dataset,
        {split: rows.lengths for split, rows in encoded.items()},
        truncated={split: rows.n_truncated for split, rows in encoded.items()},
        limit=source.max_length,
    )
