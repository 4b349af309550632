"""The harness sees how a command ended."""

import pytest

from faults.harness import Commands, Outcome


def outcome(**end):
    return Outcome(
        **{"command": ("inspect",), "code": 0, "said": "", "seconds": 0.1, "megabytes": 100.0, **end}
    )


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ({"code": None}, "hung"),
        ({"code": -11}, "exit -11"),
        ({"code": 1, "said": "unexpected"}, "exit 1: unexpected"),
        ({"code": 2}, "without a sentence"),
        ({"code": 2, "said": "Traceback (most recent call last)"}, "without a sentence"),
        ({"megabytes": 2500.0}, "held 2500 MB"),
    ],
)
def test_a_fault_is_named(end, says):
    assert says in str(outcome(**end).fault)


def test_a_sentence_is_no_fault():
    assert outcome(code=2, said="The folder x holds no adapter.").fault is None


def test_a_command_really_runs():
    commands = Commands()
    try:
        assert commands.run(["--version"]).fault is None
        refused = commands.run(["inspect", "/nowhere"])
    finally:
        commands.close()
    assert refused.code == 2
    assert "nowhere" in refused.said
    assert refused.megabytes > 10
