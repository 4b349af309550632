"""Scores of written texts against references: BLEU, chrF, ROUGE-L, and the share of right answers. Several references a text are fine.

To add one, put it into `SCORES`. Sources: sacrebleu (Post 2018, arXiv:1804.08771) and rouge-score (Lin 2004).
"""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np

from rankwise.errors import RankwiseError, nearest

Score = Callable[[Sequence[str], Sequence[Sequence[str]]], float]
"""(texts, references of each) → 0 to 100; higher is better."""
NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
"""What a number looks like: GSM8K's answer is the last one."""


def _needed(module: str) -> Any:
    try:
        return __import__(module, fromlist=["*"])
    except ImportError as error:
        raise RankwiseError(
            f"These scores need {module.partition('.')[0]}. Install it: pip install 'rankwise[generation]'."
        ) from error


def _sacrebleu(name: str, texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return a corpus score by sacrebleu, with its standard settings (BLEU: 13a, cased, smoothed by exp; chrF2)."""
    streams = list(zip_longest(*references))  # None where a text has fewer references than others
    return float(getattr(_needed("sacrebleu"), name)(list(texts), [list(one) for one in streams]).score)


def _rouge_l(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the mean of ROUGE-L's F1, of each text against the reference that is nearest."""
    scorer = _needed("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    each = [
        scorer.score_multi(some, text)["rougeL"].fmeasure
        for text, some in zip(texts, references, strict=True)
    ]
    return 100 * float(np.mean(each))


SCORES: dict[str, Score] = {
    "bleu": partial(_sacrebleu, "corpus_bleu"),
    "chrf": partial(_sacrebleu, "corpus_chrf"),
    "rouge_l": _rouge_l,
}
"""By name, but for `exact`, which is each text's own."""


def check(names: Sequence[str]) -> None:
    """Check that scores of these names are there, before any text is written.

    Raises:
        RankwiseError: there is no score of a name, or its package isn't installed.
    """
    for name in names:
        if name not in SCORES and name != "exact":
            raise RankwiseError(f"There is no score {name!r}.{nearest(name, [*SCORES, 'exact'])}")
    if "rouge_l" in names:
        _needed("rouge_score.rouge_scorer")
    if {"bleu", "chrf"} & {*names}:
        _needed("sacrebleu")


def scores(
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
    names: Sequence[str],
    answer: str | None = None,
) -> dict[str, float]:
    """Return the named scores of texts, 0 to 100.

    Args:
        texts: that a model wrote.
        references: one or more for each text.
        names: in `SCORES`, or `exact`.
        answer: as in `exact`.

    Raises:
        RankwiseError: there is no score of that name, its package isn't installed, or a text has no reference.
    """
    missing = next((row for row, some in enumerate(references) if not some), None)
    if missing is not None:
        raise RankwiseError(f"Text {missing} has no reference to be scored against.")
    check(names)
    found = {}
    for name in names:
        if name == "exact":
            found[name] = 100 * float(np.mean(exact(texts, references, answer)))
            continue
        found[name] = SCORES[name](texts, references)
    return found


def exact(texts: Sequence[str], references: Sequence[Sequence[str]], answer: str | None = None) -> np.ndarray:
    """Return which texts give the answer of one of their references, bool [texts].

    Args:
        texts: that a model wrote.
        references: of each text.
        answer: regular expression whose last match is the answer, or its group if it has one. None takes the whole text. Numbers are
            compared as numbers (1,000 is 1000.0), words without surrounding white space. A text without a match is wrong.

    Raises:
        RankwiseError: it is no regular expression, or a reference has no match.
    """
    try:
        pattern = None if answer is None else re.compile(answer)
    except re.error as error:
        raise RankwiseError(f"`answer={answer!r}` is no regular expression: {error}.") from None
    right = np.zeros(len(texts), dtype=bool)
    for row, (text, some) in enumerate(zip(texts, references, strict=True)):
        wanted = {_answer(one, pattern) for one in some}
        if None in wanted:
            raise RankwiseError(
                f"`answer={answer!r}` is found nowhere in a reference of text {row}: {some[0]!r:.60}."
            )
        right[row] = _answer(text, pattern) in wanted
    return right


def _answer(text: str, pattern: re.Pattern[str] | None) -> str | Decimal | None:
    if pattern is not None:
        matches = [match[match.lastindex or 0] for match in pattern.finditer(text)]
        if not matches:
            return None
        text = matches[-1]
    text = " ".join(text.split())
    try:
        number = Decimal(text.replace(",", ""))
    except InvalidOperation:
        return text
    return number if number.is_finite() else text
