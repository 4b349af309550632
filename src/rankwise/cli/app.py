"""The application: what all commands share, and how errors are reported.

Output for people goes to stdout. With `--json` it goes to stderr, and stdout carries one JSON object. An error in the input, or of the
machine (a full disk), is one line on stderr and exit code 2.
"""

import contextlib
import logging
import math
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO, TypeVar

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    UnknownCommandError,
    UnusedCliTokensError,
)

from rankwise import console, hardware, inert
from rankwise.cli import config_file
from rankwise.cli.parameters import in_flags, with_flags
from rankwise.errors import ProcessLost, RankwiseError, machine_fault, nearest
from rankwise.files import is_text
from rankwise.runs import interruption


def _shown_default(value: Any) -> str | None:
    """Return a default as one would type it, and None for a flag that is off or an empty list."""
    if value is None or value in ((), False):
        return None
    return " ".join(value) if isinstance(value, tuple) else str(value)


app = App(
    name="rankwise",
    version=version("rankwise"),
    help="LoRA that finds its own rank, and the harness that proves it against full fine-tuning.",
    help_epilogue="Every command takes --config FILE too: its options in YAML or TOML, such as the run.yaml that a run writes.",
    suppress_keyboard_interrupt=False,  # `main` handles it
    default_parameter=Parameter(negative=(), consume_multiple=True, show_default=_shown_default),
)
app.register_install_completion_command()

FIRST_SIGNAL = 128
"""Exit codes from here on tell of a signal."""
Json = Annotated[
    bool, Parameter(name="--json", help="Print one JSON object on stdout; everything else goes to stderr.")
]
Adapter = Annotated[Path, Parameter(help="Folder that `rankwise train` or PEFT wrote.")]
Base = Annotated[
    str | None, Parameter(name="--model", help="The base model. Default: the one that the adapter names.")
]
ThresholdFor = Annotated[
    str | None,
    Parameter(
        help="Also find the threshold of --class for a precision or a recall (precision=0.9) on these rows, and store it: predict uses it."
    ),
]
OfClass = Annotated[str | None, Parameter(name="--class", help="The class that the threshold is for.")]
Command = TypeVar("Command", bound=Callable[..., Any])


def command(function: Command) -> Command:
    """Register a function as a command: its parameters, dataclasses of options included, become flags."""
    app.command(with_flags(function))
    return function


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit; see `rankwise.cli.main`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    # PEFT imports bitsandbytes, which prints advice about kernels to download.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        _refuse_bytes(arguments)
        arguments = config_file.with_file(app, arguments)
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except ProcessLost as error:
        try:
            _fail(in_flags(str(error)), 2, debug)
        finally:  # at exit what was sent to the lost process, or is awaited from it, would be waited for
            sys.stdout.flush()
            os._exit(2)
    except (RankwiseError, CycloptsError) as error:
        _fail(_sentence(error, arguments), 2, debug)
    except KeyboardInterrupt as interrupted:
        _interrupted(str(interrupted), debug)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():  # at exit nothing may be flushed to it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        if interruption.heard() is not None:  # a library turned the interruption into an error of its own
            _interrupted("", debug)
        if sentence := machine_fault(error):
            _fail(in_flags(sentence), 2, debug)
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        _fail(
            f"rankwise stopped on an unexpected error ({what}). Give --debug to see where.",
            1,
            debug,
        )
    sys.exit(0)


def _reader_has_gone() -> bool:
    """Return whether nobody reads our output any more; where that can't be asked, it is taken to be so."""
    if not hasattr(select, "poll"):
        return True
    asked = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            asked.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))


def _refuse_bytes(arguments: Sequence[str]) -> None:
    """Refuse an argument that isn't UTF-8, such as an old file name: records and models' files can't hold it."""
    for argument in arguments:
        if not is_text(argument):
            raise RankwiseError(f"{argument!r} isn't UTF-8. Rename the file or folder.")


def _interrupted(message: str, debug: bool) -> NoReturn:
    for one in interruption.SIGNALS:
        signal.signal(one, signal.SIG_IGN)  # a second one must not interrupt the exit
    _fail(message or f"{interruption.words()}.", interruption.exit_code(), debug)


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if not _speaks(code):
        sys.exit(code)
    with contextlib.suppress(OSError):  # the terminal may be gone
        if debug:
            print(inert.terminal(traceback.format_exc(), lines=True), file=sys.stderr)
        console.line(" ".join(message.split()), sys.stderr)
    sys.exit(code)


def _speaks(code: int) -> bool:
    """Return whether this process reports an error: of several that train together, the first one that meets it.

    What was saved when they were interrupted, the one that writes it says.
    """
    if hardware.processes() == 1:
        return True
    from rankwise.engine import processes  # torch takes a moment, which one process alone has no need for

    return (code < FIRST_SIGNAL or processes.is_first()) and processes.speaks()


def _sentence(error: Exception, arguments: list[str]) -> str:
    """Return an error as one sentence that says what to change in the command line."""
    if not isinstance(error, CycloptsError):
        return in_flags(str(error))
    command = " ".join(["rankwise", *(error.command_chain or ())])
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name, what = error.argument.name, str(error.argument.parameter.help or "").rstrip(".")
        needs = f"{name} needs a value" if name in arguments else f"{command} needs {name}"
        return f"{needs}: {what}. See {command} --help."
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        left = ", ".join(repr(token) for token in error.unused_tokens)
        second = arguments[arguments.index("--text") + 2 :][:1] if "--text" in arguments else []
        pair = " The second text of a pair has --text-pair." if {*second} & {*error.unused_tokens} else ""
        return f"{command} has no use for {left}.{pair} See {command} --help."
    if isinstance(error, UnknownCommandError) and arguments[0].startswith("-"):
        return f"Unknown option: {arguments[0]}.{nearest(arguments[0], ('--help', '--version', '--install-completion'))}"
    return str(error)


def people(json: bool) -> TextIO:
    """Return the stream that people read."""
    return sys.stderr if json else sys.stdout


def say(json: bool, line: str) -> None:
    """Print a line for people, with the arguments that it names as flags."""
    console.line(in_flags(line), people(json))


def print_json(document: Any) -> None:
    """Print the one JSON object of a command. NaN and infinity become null, because JSON has neither."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(inert.json(_with_null(document), ascii_only="utf" not in encoding.lower()))


def _with_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_null(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_with_null(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
