"""Options of the library as flags of commands."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cyclopts import App

from rankwise.cli.parameters import in_flags, with_flags
from rankwise.errors import RankwiseError


@dataclass(frozen=True, kw_only=True)
class Inner:
    batch_size: int | None = None
    """Rows in each step."""
    wait: bool = True
    """On unless it is turned off."""
    loss_of_prompt: bool | None = None
    """On, off, or by the rows."""


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = "x"
    inner: Inner = field(default_factory=Inner)


def call(line):
    app = App()

    @app.default
    @with_flags
    def command(options: Outer = Outer(), *, count: int = 1):
        return options, count

    return app(line, exit_on_error=False, print_error=False, result_action="return_value")


def test_fields_of_dataclasses_are_flags_and_come_back_as_dataclasses():
    options, count = call("--name y --batch-size 8 --count 3")
    assert options == Outer(name="y", inner=Inner(batch_size=8))
    assert (type(options), type(options.inner), count) == (Outer, Inner, 3)


@pytest.mark.parametrize(
    ("line", "wait", "loss_of_prompt"),
    [
        ("", True, None),
        ("--no-wait", False, None),
        ("--loss-of-prompt", True, True),
        ("--no-loss-of-prompt --wait", True, False),
        ("--wait=false --loss-of-prompt=false", False, False),  # as a run.yaml gives them
    ],
)
def test_what_is_on_by_itself_can_be_turned_off(line, wait, loss_of_prompt):
    inner = call(line)[0].inner
    assert (inner.wait, inner.loss_of_prompt) == (wait, loss_of_prompt)


@pytest.mark.parametrize("line", ["--batch-size 4.5", "--count 4.5"])
def test_numbers_with_fractions_are_refused_where_whole_ones_belong(line):
    with pytest.raises(RankwiseError, match=r"must be a whole number; it is '4\.5'"):
        call(line)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Lower `lr=` (now 1).", "Lower --lr (now 1)."),
        ('Take `memory="fast"`.', "Take --memory fast."),
        ("`batch_size=8` is too much.", "--batch-size 8 is too much."),
        ("Give `no_head=True`.", "Give --no-head."),
        ("With `wait=False` it ends.", "With --no-wait it ends."),
        (
            "Name it with `base=`; leave the head out with `head=False`.",
            "Name it with --model; leave the head out with --no-head.",
        ),
        ("`some_argument=3` is of another program.", "`some_argument=3` is of another program."),
        ("Lower lr= (now 1), or use dtype=float32.", "Lower --lr (now 1), or use --dtype float32."),
        ("lora:rank=4 and `lora` stay.", "lora:rank=4 and `lora` stay."),
    ],
)
def test_arguments_in_messages_are_shown_as_flags(message, shown):
    import rankwise.cli.commands  # noqa: F401 (its commands' flags are known)

    assert in_flags(message) == shown


def test_a_librarys_error_names_arguments_and_the_commands_error_flags(capsys):
    from rankwise.cli import main
    from rankwise.config import TrainOptions

    with pytest.raises(RankwiseError, match="^`batch_size=` must be a number, 1 or more; it is 0.$"):
        TrainOptions(batch_size=0)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--batch-size", "0", "--out", str(Path("out"))])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "--batch-size must be a number, 1 or more; it is 0.\n"


def test_only_a_reader_of_the_output_that_has_gone_is_a_quiet_end(monkeypatch, capfd):
    from rankwise.cli import app

    def broken(*_, **__):
        raise BrokenPipeError("the pipe to another process")

    monkeypatch.setattr(app.config_file, "with_file", broken)
    with pytest.raises(SystemExit) as ended:
        app.main(["models"])
    assert ended.value.code != 0
    assert "the pipe to another process" in capfd.readouterr().err
