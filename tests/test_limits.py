"""A memory option is a word or a size."""

import pytest

from rankwise.errors import RankwiseError
from rankwise.limits import parse_memory


@pytest.mark.parametrize(
    ("text", "found"),
    [("fast", "fast"), ("LEAN", "lean"), ("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("7kb", 7000)],
)  # fmt: skip
def test_memory_is_a_word_or_a_size(text, found):
    assert parse_memory(text) == found


@pytest.mark.parametrize("text", ["", "2", "GB", "two GB", "-1GB", "0MB", "nanGB", "infGB", "2 G B", "2PB"])
def test_an_invalid_size_is_refused_with_valid_ones(text):
    with pytest.raises(RankwiseError, match="`memory=` takes fast, lean, or a size such as 2GB"):
        parse_memory(text)
