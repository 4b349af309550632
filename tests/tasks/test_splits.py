"""The split into training and validation rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rankwise.tasks.encoding import Rows
from rankwise.tasks.objectives import OBJECTIVES
from rankwise.tasks.splits import stratified_split

texts = st.text("abAB !", max_size=4)


@given(
    st.lists(st.tuples(texts, st.integers(0, 2)), min_size=1, max_size=60), st.floats(0.05, 0.5), st.randoms()
)
def test_a_split_is_a_partition_that_keeps_like_texts_together(rows, share, random):
    label_of = {text.casefold().replace("!", " ").strip(): label for text, label in rows}
    rows = [(text, label_of[text.casefold().replace("!", " ").strip()]) for text, _ in rows]

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
    assert not {t.casefold() for t in train.text} & {t.casefold() for t in validation.text}
    assert set(train.labels.tolist()) == {label for _, label in rows}
    random.shuffle(order)
    assert set(split(order)[1].idx.tolist()) == set(validation.idx.tolist())
