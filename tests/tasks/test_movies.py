"""The movie-review sentences, counted from the downloaded file itself."""

import pytest

from rankwise import downloads
from rankwise.config import RunConfig
from rankwise.tasks.load import load_dataset


def test_movies_are_the_sentences_with_a_clear_rating():
    """Counted from the file itself: no row is lost, labels are the ratings' signs, no text is on both sides."""
    dataset = load_dataset(RunConfig(task="movies"))
    train, validation = dataset.train, dataset.validation["validation"]
    lines = [line.split("\t") for line in downloads.MOVIES.path().read_text(encoding="utf-8").splitlines()]
    expected = {int(number): (text, int(float(r) > 0)) for number, r, text in lines if abs(float(r)) >= 0.3}
    found = {
        int(i): (text, int(label))
        for rows in (train, validation)
        for i, text, label in zip(rows.idx, rows.text, rows.labels, strict=True)
    }
    assert found == expected
    assert len(train) + len(validation) == len(expected) == 10_318
    assert len(validation) / len(expected) == pytest.approx(0.15, abs=0.001)
    assert validation.labels.mean() == pytest.approx(train.labels.mean(), abs=0.001)
    assert not {text.lower() for text in train.text} & {text.lower() for text in validation.text}
