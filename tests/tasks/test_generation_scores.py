"""Scores of written texts: those of sacrebleu and rouge-score as they are called by themselves, and right answers."""

import sys

import pytest

from rankwise.errors import RankwiseError
from rankwise.tasks.generation_scores import NUMBER, exact, scores

TEXTS = ["the cat sat on the mat .", "a dog ran ."]
REFERENCES = [
    ["the cat sat on a mat .", "a cat was on the mat .", "the cat sat on the mat ."],
    ["the dog ran off ."],
]


def test_scores_are_those_of_sacrebleu_with_several_references():
    sacrebleu = pytest.importorskip("sacrebleu")
    streams = [[some[i] if i < len(some) else None for some in REFERENCES] for i in range(3)]
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    wanted = {
        "bleu": bleu.corpus_score(TEXTS, streams).score,
        "chrf": chrf.corpus_score(TEXTS, streams).score,
    }
    assert scores(TEXTS, REFERENCES, ["bleu", "chrf"]) == pytest.approx(wanted)
    assert scores(TEXTS[:1], REFERENCES[:1], ["bleu"]) == pytest.approx({"bleu": 100})


@pytest.mark.slow  # it imports NLTK
def test_rouge_l_is_that_of_the_nearest_reference():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    each = [
        max(scorer.score(one, text)["rougeL"].fmeasure for one in some)
        for text, some in zip(TEXTS, REFERENCES, strict=True)
    ]
    assert scores(TEXTS, REFERENCES, ["rouge_l"]) == pytest.approx({"rouge_l": 50 * sum(each)})


@pytest.mark.parametrize(
    ("text", "reference", "right"),
    [
        ("It is 1,234.0 in all.", "12 + 1222 = <<12+1222=1234>>1234\n#### 1,234", True),
        ("#### -5", "#### 5", False),
        ("first 18, then 17", "#### 18", False),
        ("no number", "#### 18", False),
    ],
)
def test_the_last_number_is_the_answer(text, reference, right):
    assert exact([text], [[reference]], NUMBER).tolist() == [right]


def test_an_answer_is_the_whole_text_or_a_patterns_last_group():
    assert scores(["  Paris ", "Rome"], [["Rome", "Paris"], ["Paris"]], ["exact"]) == {"exact": 50}
    assert exact(["answer: a. answer: b"], [["answer: b"]], r"answer: (\w)").tolist() == [True]


def test_what_cannot_be_scored_is_refused(monkeypatch):
    with pytest.raises(RankwiseError, match="no score 'blue'. Did you mean 'bleu'"):
        scores(TEXTS, REFERENCES, ["blue"])
    with pytest.raises(RankwiseError, match="Text 1 has no reference"):
        scores(TEXTS, [["a"], []], ["bleu"])
    with pytest.raises(RankwiseError, match="found nowhere in a reference of text 0: 'none'"):
        exact(["1"], [["none"]], NUMBER)
    with pytest.raises(RankwiseError, match="is no regular expression"):
        exact(["1"], [["1"]], "(")
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(
        RankwiseError, match=r"need sacrebleu. Install it: pip install 'rankwise\[generation\]'"
    ):
        scores(TEXTS, REFERENCES, ["bleu"])
