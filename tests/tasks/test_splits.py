"""The split into training and validation rows."""

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rankwise.tasks.encoding import Rows
from rankwise.tasks.objectives import OBJECTIVES
from rankwise.tasks.splits import stratified_split, two_labels

texts = st.text("abAB !", max_size=4)


def loose(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower())) or text.strip()


@given(
    st.lists(st.tuples(texts, st.integers(0, 2)), min_size=1, max_size=60), st.floats(0.05, 0.5), st.randoms()
)
def test_a_split_is_a_partition_that_keeps_like_texts_together(rows, share, random):
    def split(order: list[int]) -> tuple[Rows, Rows]:
        chosen = [rows[i] for i in order]
        labels = np.array([label for _, label in chosen], dtype=np.int64)
        return stratified_split(
            Rows([text for text, _ in chosen], None, labels, np.array(order)),
            share,
            OBJECTIVES["classification"],
        )

    order = list(range(len(rows)))
    train, validation = split(order)
    assert sorted([*train.idx.tolist(), *validation.idx.tolist()]) == order
    assert not {loose(t) for t in train.text} & {loose(t) for t in validation.text}
    labels_of = {key: {y for t, y in rows if loose(t) == key} for key in {loose(t) for t, _ in rows}}
    if all(len(labels) == 1 for labels in labels_of.values()):
        assert set(train.labels.tolist()) == {label for _, label in rows}
    random.shuffle(order)
    assert set(split(order)[1].idx.tolist()) == set(validation.idx.tolist())


def test_a_text_with_two_labels_stays_on_one_side():
    texts = [f"text {i}" for i in range(200)] + [f"Text {i}!" for i in range(60)]
    labels = np.array([0] * 150 + [1] * 50 + [1] * 60)
    rows = Rows(texts, None, labels, np.arange(260))
    train, validation = stratified_split(rows, 0.2, OBJECTIVES["classification"])
    assert not {loose(t) for t in train.text} & {loose(t) for t in validation.text}
    assert 30 < len(validation) < 80
    assert set(train.labels.tolist()) == set(validation.labels.tolist()) == {0, 1}
    assert two_labels(Rows(["a", "b", " a", "b"], None, np.array([0, 1, 1, 1]), np.arange(4))) == 2
