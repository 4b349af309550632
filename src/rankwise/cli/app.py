"""The command line itself: the app, what every command shares, and how what is wrong is said.

People's output goes to stdout; with `--json` it goes to stderr and stdout carries one JSON object. What is wrong with the input is one
line on stderr and exit code 2.
"""

import json as json_format
import logging
import os
import signal
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    UnknownCommandError,
    UnusedCliTokensError,
)

from rankwise.errors import RankwiseError, nearest


def _shown_default(value: Any) -> str | None:
    """A default as one would type it; nothing for a flag that is off or a list that is empty."""
    if value is None or value in ((), False):
        return None
    return " ".join(value) if isinstance(value, tuple) else str(value)


app = App(
    name="rankwise",
    version=version("rankwise"),
    help="LoRA that finds its own rank, and the harness that proves it against full fine-tuning.",
    suppress_keyboard_interrupt=False,  # `main` says how to continue
    default_parameter=Parameter(negative=(), consume_multiple=True, show_default=_shown_default),
)
app.register_install_completion_command()

Json = Annotated[
    bool, Parameter(name="--json", help="Print one JSON object on stdout; everything else goes to stderr.")
]
Adapter = Annotated[Path, Parameter(help="What `rankwise train` or PEFT wrote.")]
Base = Annotated[
    str | None, Parameter(name="--model", help="The base model, where it isn't the one the adapter names.")
]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs a command and exits: 0 done, 2 something to put right, 130 interrupted, 1 a defect of rankwise."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # PEFT imports it, and it speaks of kernels to fetch
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (RankwiseError, CycloptsError) as error:
        _fail(_sentence(error, arguments), 2, debug)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # leaving takes a moment; some press it again
        _fail("Interrupted. The same command continues from what was saved.", 130, debug)
    except BrokenPipeError:  # whoever read our output has enough; nothing is left to flush at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        _fail(
            f"rankwise stopped on an error it has no sentence for ({what}). Give --debug to see where.",
            1,
            debug,
        )
    sys.exit(0)


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(code)


def _sentence(error: Exception, arguments: list[str]) -> str:
    """What to put right in a command line, for the errors that cyclopts leaves a person guessing about."""
    if not isinstance(error, CycloptsError):
        return str(error)
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
    return sys.stderr if json else sys.stdout


def say(json: bool, line: str) -> None:
    print(line, file=people(json))


def print_json(document: Any) -> None:
    print(json_format.dumps(document, ensure_ascii=False, allow_nan=False))
