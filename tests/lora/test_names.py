"""How modules are named by patterns."""

import pytest

from rankwise.adapters.peft_config import LoraConfig
from rankwise.errors import RankwiseError
from rankwise.lora import names


@pytest.mark.parametrize("pattern", ["(?i)query|value", "[[a]query", r".*\.(query|value)$", "query"])
def test_patterns_that_end_are_left_to_peft(pattern, capfd):
    names.check_bounded([pattern], ["encoder.query", "encoder.value"])
    assert capfd.readouterr() == ("", "")


def test_what_is_no_pattern_is_refused():
    with pytest.raises(RankwiseError, match="is neither a module's name nor a pattern"):
        names.check_bounded(["*query("], ["encoder.query"])


def test_a_target_that_is_a_pattern_must_match_the_whole_path():
    config = LoraConfig(peft_type="LORA", target_modules="encoder.query_proj")
    assert config.adapts("encoder.query_proj")
    assert not config.adapts("encoder.query")
