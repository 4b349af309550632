"""Texts that a trained language model writes for the prompts of rows, and their scores where the rows have references."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from rankwise.adapters.trained import Trained
from rankwise.engine.generate import generate
from rankwise.errors import RankwiseError
from rankwise.inference_options import TextOptions
from rankwise.models.families import position_limit
from rankwise.tasks import generation_scores, language
from rankwise.tasks.language import Learned
from rankwise.tasks.prompts import REFERENCES, Asked, Prompt

Progress = Callable[[int, int], None]
"""Called with (prompts done, all prompts)."""


class Writer:
    """Writes a text for each prompt, once; rows with one prompt share it, and their references.

    Args:
        trained: a language model.
        options: how texts are written. Scores that aren't named are those of the task.

    Raises:
        RankwiseError: there is no score of a name, or its package isn't installed.
    """

    def __init__(self, trained: Trained, options: TextOptions) -> None:
        generation_scores.check(options.scores)
        self._trained, self._options = trained, options
        self.texts: dict[Prompt, str] = {}
        self.references: dict[Prompt, list[str]] = {}
        self.reasons: dict[Prompt, str] = {}
        """Why there is no text for a prompt."""
        self._cut = 0

    def write(self, asked: Sequence[Asked], on_progress: Progress = lambda done, of: None) -> None:
        """Write the texts that rows ask for and that aren't written yet."""
        for row in asked:
            if row.prompt is not None:
                known = self.references.setdefault(row.prompt, [])
                known += [one for one in row.references if one not in known]
        prompts = [p for p in self.references if p not in self.texts and p not in self.reasons]
        ids = self._ids(prompts)
        self.reasons |= {p: why for p in prompts if (why := self._unwritable(len(ids[p])))}
        prompts = [p for p in prompts if p not in self.reasons]
        if not prompts:
            return
        trained = self._trained
        found = generate(
            trained.model, trained.tokenizer, [ids[p] for p in prompts], self._options,
            compute=trained.compute, on_progress=on_progress,
        )  # fmt: skip
        self._cut += int(found.cut.sum())
        self.texts |= dict(zip(prompts, (text.strip() for text in found.texts), strict=True))

    def _ids(self, prompts: Sequence[Prompt]) -> dict[Prompt, list[int]]:
        ids: dict[Prompt, list[int]] = {}
        for chat in {prompt.chat for prompt in prompts}:
            some, learned = [p for p in prompts if p.chat == chat], Learned(chat=chat, loss_on="all")
            found = language.prompt_ids([p.text for p in some], learned, self._trained.tokenizer)
            ids |= dict(zip(some, found, strict=True))
        return ids

    def _unwritable(self, tokens: int) -> str | None:
        limit, new = position_limit(self._trained.model), self._options.max_new_tokens
        if tokens == 0:
            return "the tokenizer finds no token in the text"
        if limit is not None and tokens + new > limit:
            return (
                f"{tokens:,} tokens and max_new_tokens={new} are more than the {limit:,} that the model takes"
            )
        return None

    def scores(self) -> dict[str, float]:
        """Return the scores of texts with references, 0 to 100. Without references there are none.

        Raises:
            RankwiseError: scores are asked for by name and there are no references, or a package isn't installed.
        """
        scored = [prompt for prompt in self.texts if self.references[prompt]]
        if not scored:
            if self._options.scores:
                raise no_references()
            return {}
        task = self._trained.task
        return generation_scores.scores(
            [self.texts[prompt] for prompt in scored],
            [self.references[prompt] for prompt in scored],
            self._options.scores or task.scores,
            self._options.answer or task.answer,
        )

    def notes(self) -> list[str]:
        """Return sentences on texts without an end."""
        if not self._cut:
            return []
        limit = self._options.max_new_tokens
        return [f"{self._cut:,} of {len(self.texts):,} texts have no end within `max_new_tokens={limit}`."]


def no_references() -> RankwiseError:
    """Return the error for rows whose texts can't be scored."""
    return RankwiseError(
        f"`scores=` needs references, and these rows have none. Give them in a column {REFERENCES!r}, or as completions."
    )


def table(asked: Sequence[Asked], writer: Writer) -> tuple[pa.Table, list[str | None]]:
    """Return what is written into a prediction file for rows, and for each row None or why it has no text."""
    reasons = [row.reason or (row.prompt and writer.reasons.get(row.prompt)) for row in asked]
    texts = [None if row.prompt is None else writer.texts.get(row.prompt) for row in asked]
    return pa.table({"generated": pa.array(texts, pa.string())}), reasons


def words_a_text(writer: Writer) -> float:
    """Return the mean number of words of a text."""
    return float(np.mean([len(text.split()) for text in writer.texts.values()] or [0]))
