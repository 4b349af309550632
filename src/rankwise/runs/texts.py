"""What a trained language model writes for a few prompts of its validation rows, so that a report can show methods side by side."""

from collections.abc import Sequence

from rankwise.adapters.texts import Writer
from rankwise.adapters.trained import Trained
from rankwise.inference_options import TextOptions
from rankwise.models.families import position_limit
from rankwise.run_folder import RunFolder
from rankwise.runs.prepare import Prepared
from rankwise.tasks import messages, prompts
from rankwise.tasks.prompts import Asked, Prompt

PROMPTS = 4
"""Prompts that texts are written for: the first of the validation rows, so that all methods and seeds have the same."""
NEW_TOKENS = 96
"""Tokens a text has at most. Models that take few tokens get half of theirs."""


def write(run: Prepared, folder: RunFolder) -> None:
    """Write texts.json, where the rows have prompts with references; greedily.

    Args:
        run: after its last step.
        folder: of the run.
    """
    rows = run.rows.dataset.validation[run.rows.headline]
    if rows.learned is None:
        return
    asked = prompts.of_rows(rows)
    first = _first(asked)
    if not first:
        return
    limit = position_limit(run.model)
    options = TextOptions(max_new_tokens=NEW_TOKENS if limit is None else max(1, min(NEW_TOKENS, limit // 2)))
    trained = Trained(
        model=run.model, tokenizer=run.source.tokenizer, task=run.rows.dataset.task,
        compute=run.training.compute, config=run.config, folder=folder.path,
    )  # fmt: skip
    writer = Writer(trained, options)
    writer.write([one for one in asked if one.prompt in first])
    folder.write_texts(
        [
            {
                "idx": int(rows.idx[place]),
                "prompt": _readable(prompt),
                "references": writer.references[prompt],
                "text": writer.texts[prompt],
            }
            for prompt, place in first.items()
            if prompt in writer.texts
        ]
    )


def _first(asked: Sequence[Asked]) -> dict[Prompt, int]:
    """Return the first prompts with a reference, and the place of the row that each stands in."""
    found: dict[Prompt, int] = {}
    for place, one in enumerate(asked):
        if one.prompt is not None and one.references and len(found) < PROMPTS:
            found.setdefault(one.prompt, place)
    return found


def _readable(prompt: Prompt) -> str:
    if not prompt.chat:
        return prompt.text
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages.load(prompt.text))
