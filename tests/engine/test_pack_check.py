"""Models that can be packed are told from those that can't, and those that can't say why."""

import pytest

import tiny
from rankwise.engine.pack_check import can_pack


@pytest.mark.parametrize("family", tiny.PACKED)
def test_families_that_pack_are_recognised(family):
    assert can_pack(tiny.classifier(family)) == (True, "")


@pytest.mark.parametrize("family", ["deberta-v2", "mpnet"])
def test_a_family_that_cannot_be_packed_says_why(family):
    possible, reason = can_pack(tiny.classifier(family))
    assert not possible
    assert "attention registry" in reason
