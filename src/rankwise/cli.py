"""The commands: arguments in, one call, result out. Everything they decide lives in the rooms they call.

People's output goes to stdout; with `--json` it goes to stderr and stdout carries one JSON object. What is wrong with the input is one
line on stderr and exit code 2.
"""

import json as json_format
import os
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TextIO

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    Token,
    UnknownCommandError,
    UnusedCliTokensError,
)

from rankwise import board
from rankwise.bench.config import BenchConfig
from rankwise.config import (
    CompareConfig,
    LoraOptions,
    MaybeWhole,
    PlanConfig,
    RunConfig,
    differences,
    to_json,
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
Config = Annotated[CompareConfig, Parameter(name="*")]
OneRun = Annotated[RunConfig, Parameter(name="*")]
Measured = Annotated[BenchConfig, Parameter(name="*")]
Planned = Annotated[PlanConfig, Parameter(name="*")]
Base = Annotated[
    str | None, Parameter(name="--model", help="The base model, where it isn't the one the adapter names.")
]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs a command and exits: 0 done, 2 something to put right, 130 interrupted, 1 a defect of rankwise."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (RankwiseError, CycloptsError) as error:
        _fail(_sentence(error, arguments), 2, debug)
    except KeyboardInterrupt:
        _fail("Interrupted. The same command continues from here.", 130, debug)
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
        return f"{command} has no use for {left}. See {command} --help."
    if isinstance(error, UnknownCommandError) and arguments[0].startswith("-"):
        return f"Unknown option: {arguments[0]}.{nearest(arguments[0], ('--help', '--version', '--install-completion'))}"
    return str(error)


@app.command
def compare(config: Config = CompareConfig(), *, json: Json = False) -> None:  # noqa: B008 (frozen)
    """Compare methods: tasks × methods × seeds, each run in a process of its own.

    The same command again continues what was interrupted and keeps what is finished; more tasks, methods or seeds under the same
    --out are added to it.

    Example: rankwise compare --tasks sst2 rte --methods full lora --seeds 5 --out runs/first
    """
    from rankwise import grid
    from rankwise.progress import GridProgress

    _check_names(config.tasks, config.methods, config.train.recipe)
    if config.tensorboard:
        board.check()
    _fetch(config)
    with GridProgress(_people(json)) as progress:
        failed = grid.run_grid(config, progress)
    n = len(config.runs())
    if len(failed) < n:
        _report(config.out, json)
    elif json:
        _print_json({"out": str(config.out), "failed": failed})
    if failed:
        whys = "; ".join(dict.fromkeys(failed.values()))
        raise RankwiseError(f"{len(failed)} of {n} run{'s' * (n != 1)} failed: {whys}")


@app.command
def report(
    out: Annotated[Path, Parameter(help="Folder that `rankwise compare` wrote.")],
    /,
    *,
    watch: Annotated[
        bool,
        Parameter(help="Make it again whenever a run ends, until the grid is finished; the page follows."),
    ] = False,
    json: Json = False,
) -> None:
    """Make report.html, report.md, report.json and results.parquet from the run folders of a grid.

    Example: rankwise report runs/first
    """
    from rankwise import report

    if not watch:
        _report(out, json)
        return
    console = _people(json)
    document = report.watch(out, lambda document: report.show_progress(document, console))
    report.show(document, console)
    if json:
        _print_json(report.to_json(document))


def _report(out: Path, json: bool) -> None:
    from rankwise import report

    document = report.write(out)
    report.show(document, _people(json))
    if json:
        _print_json(report.to_json(document))


@app.command
def train(
    file: Annotated[
        Path | None, Parameter(help="CSV, TSV, JSONL or Parquet; a task by name (--task) without it.")
    ] = None,
    /,
    config: OneRun = RunConfig(),  # noqa: B008 (frozen)
    *,
    out: Annotated[Path, Parameter(help="Folder of the run: the adapter, its record, and its scores.")],
    tensorboard: Annotated[bool, Parameter(help="Write the run's curves for TensorBoard too.")] = False,
    json: Json = False,
) -> None:
    """Train one adapter (or a whole model), on a task by name or on a table of one's own.

    The same command again continues an interrupted run.

    Example: rankwise train reviews.csv --text review --label stars --out my-adapter
    """
    from rankwise import hub
    from rankwise.store import RunFolder

    if tensorboard:
        board.check()
    if file is None:
        _refuse_table_options(config)
    config = replace(config, table=replace(config.table, train_file=file))
    _check_names([config.task] if file is None else [], [config.method], config.train.recipe)
    folder = RunFolder(out)
    request = to_json(config)
    if folder.finished:
        _refuse_other(folder, request)
        result = folder.read_result()
    else:
        if config.model.from_adapter is not None:
            hub.check_start(config.model.from_adapter, config.method.partition(":")[0])
        _find_model(config)
        result = _train(folder, request, {"tensorboard": tensorboard}, json)
    if folder.read_ranks():
        from rankwise import rank_map

        for line in rank_map.draw(result["rank"]):
            _say(json, line)
        _say(json, f"Mean rank {result['mean_rank']:.2f}, {result['adapter_params']:,} adapter parameters.")
    _say(
        json,
        f"{result['metric']} {result['score']:.4f} on {result['n_validation']:,} validation rows. Saved in {out}.",
    )
    if json:
        _print_json({"out": str(out), **result})


def _train(folder: Any, request: dict[str, Any], assigned: dict[str, Any], json: bool) -> dict[str, Any]:
    from rankwise.progress import RunProgress

    if folder.checkpoint is not None:
        _refuse_other(folder, request)
    with _nothing_half_written(folder), _alone(folder):
        if folder.has_run and folder.checkpoint is None:
            folder.update_run_json(facts=None)  # nothing to continue, so nothing of that try binds this one
        folder.write_request(request, assigned)
        from rankwise.run import execute  # slow to import: here, that the folder can be written is known

        with RunProgress(_people(json)) as progress:
            return execute(folder, progress)


@contextmanager
def _alone(folder: Any) -> Iterator[None]:
    """Refuses a second run in the same folder at the same time."""
    from filelock import FileLock, Timeout

    from rankwise.store import make_folder

    make_folder(folder.path)
    lock = FileLock(folder.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RankwiseError(
            f"Another rankwise is at work in {folder.path}. Wait for it, or give another --out."
        ) from None
    try:
        yield
    finally:
        lock.release()
        (folder.path / ".lock").unlink(missing_ok=True)


@contextmanager
def _nothing_half_written(folder: Any) -> Iterator[None]:
    """Takes back a folder that a run made, where it ended before its first checkpoint: there is nothing to continue from."""
    new = not folder.path.exists()
    try:
        yield
    except BaseException:
        if new and folder.checkpoint is None and not folder.finished:
            shutil.rmtree(folder.path, ignore_errors=True)
        raise


def _refuse_other(folder: Any, request: dict[str, Any]) -> None:
    differing = differences(folder.read_run()["requested"], request)
    if differing:
        raise RankwiseError(
            f"{folder.path} holds a run with other settings ({'; '.join(differing)}). "
            "Give another --out, these settings, or remove that folder."
        )


def _refuse_table_options(config: RunConfig) -> None:
    given = [f.name for f in fields(config.table) if getattr(config.table, f.name) is not None]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise RankwiseError(
            f"{flag} is for a table of one's own, and no file is given: rankwise train reviews.csv {flag} …"
        )


Text = Annotated[str | None, Parameter(name="--text", help="Column of the text. Default: as in training.")]
TextPair = Annotated[
    str | None, Parameter(name="--text-pair", help="Column of the second text. Default: as in training.")
]
Label = Annotated[str | None, Parameter(name="--label", help="Column of the label. Default: as in training.")]


@app.command
def evaluate(
    adapter: Annotated[Path, Parameter(help="What `rankwise train` or PEFT wrote.")],
    file: Annotated[
        Path | None, Parameter(help="Labelled rows; without it those that the run was scored on.")
    ] = None,
    /,
    *,
    split: str = "validation",
    data: Path | None = None,
    model: Base = None,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    json: Json = False,
) -> None:
    """Score a trained adapter or model on labelled rows.

    Example: rankwise evaluate my-adapter held_out.csv

    Parameters
    ----------
    split
        Split of the run's own task, where no file is given.
    data
        Folder of Parquet files of that task. Default: as in training.
    """
    from rankwise import scoring
    from rankwise.progress import Bar

    trained = scoring.open_trained(adapter, base=model, text=text, text_pair=text_pair, label=label)
    with Bar(_people(json), "Evaluating") as bar:
        result = (
            scoring.evaluate_task(trained, split, data, bar)
            if file is None
            else scoring.evaluate_file(trained, file, bar)
        )
    notes = result.pop("notes")
    for note in notes:
        _say(json, note)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in result.items() if name != "n")
    _say(json, f"{shown} on {result['n']:,} rows.")
    if json:
        _print_json({"adapter": str(adapter), **result, "notes": notes})


@app.command
def predict(
    adapter: Annotated[Path, Parameter(help="What `rankwise train` or PEFT wrote.")],
    file: Annotated[Path, Parameter(help="Rows to predict on: CSV, TSV, JSONL or Parquet.")],
    /,
    *,
    out: Annotated[
        Path, Parameter(help="File to write, its kind by its ending: .jsonl, .csv, .tsv or .parquet.")
    ],
    model: Base = None,
    text: Text = None,
    text_pair: TextPair = None,
    json: Json = False,
) -> None:
    """Write label, probability of each class and logits for each row of a file.

    Example: rankwise predict my-adapter new.jsonl --out scored.jsonl
    """
    from rankwise import scoring
    from rankwise.progress import Bar

    scoring.check_out(out, file)
    trained = scoring.open_trained(adapter, base=model, text=text, text_pair=text_pair)
    with Bar(_people(json), "Predicting") as bar:
        result = scoring.predict_file(trained, file, out, bar)
    for note in result["notes"]:
        _say(json, note)
    counts = ", ".join(f"{name} {count:,}" for name, count in result["predicted"].items())
    _say(json, f"{result['n']:,} rows ({counts}) in {out}.")
    if json:
        _print_json({"adapter": str(adapter), **result})


@app.command
def merge(
    adapter: Annotated[Path, Parameter(help="What `rankwise train` or PEFT wrote.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder for the merged model.")],
    model: Base = None,
    json: Json = False,
) -> None:
    """Fold an adapter into a float32 copy of its base: an ordinary Transformers folder.

    Example: rankwise merge my-adapter --out merged-model
    """
    from rankwise import api

    merged = api.merge(adapter, out, base=model)
    parameters = sum(p.numel() for p in merged.parameters())
    _say(
        json,
        f"Merged model of {parameters:,} parameters in {out}: AutoModelForSequenceClassification.from_pretrained loads it.",
    )
    if json:
        _print_json({"adapter": str(adapter), "out": str(out), "total_params": parameters})


def _count(kind: Any, tokens: Sequence[Token]) -> int:
    """`50k`, `1.5M` or a plain number."""
    text = tokens[0].value
    try:
        return int(float(text.rstrip("kKmM")) * {"k": 1e3, "m": 1e6}.get(text[-1:].lower(), 1))
    except ValueError:
        raise RankwiseError(f"--max-params takes a number such as 50k or 1.5M, not {text!r}.") from None


@app.command
def export(
    adapter: Annotated[Path, Parameter(help="A PEFT adapter's folder, or a loralib checkpoint (.bin).")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder to write; a file for loralib.")],
    format: Literal["peft", "loralib"] = "peft",
    uniform_rank: MaybeWhole = None,
    max_params: Annotated[int | None, Parameter(converter=_count)] = None,
    no_head: bool = False,
    model: Base = None,
    alpha: float | None = None,
    json: Json = False,
) -> None:
    """Write an adapter in the form that another program reads: PEFT, a server of LoRA adapters, or loralib.

    Example: rankwise export my-adapter --uniform-rank 8 --no-head --out served

    Parameters
    ----------
    format
        peft or loralib.
    uniform_rank
        The same rank for each layer, as servers want it: cut by singular values, or filled up with zeros.
    max_params
        Entries of the adapter's matrices at most (50k, 1.5M): the components with least energy are left out.
    no_head
        Leave out the classification head, which most servers can't load.
    alpha
        s = alpha/r of a loralib checkpoint, which doesn't say it.
    """
    from rankwise import export as exporting

    if uniform_rank is not None and uniform_rank < 1:
        raise RankwiseError(f"--uniform-rank must be a number, 1 or more; it is {uniform_rank}.")
    done = exporting.export(
        adapter, out, format=format, uniform_rank=uniform_rank, max_params=max_params, head=not no_head,
        base=model, alpha=alpha,
    )  # fmt: skip
    low, high = min(done.ranks.values()), max(done.ranks.values())
    ranks = str(low) if low == high else f"{low} to {high}"
    _say(json, f"{len(done.ranks)} layers of rank {ranks}, {done.adapter_params:,} parameters in {out}.")
    if done.kept < 1:
        _say(json, f"{100 * done.kept:.2f} % of the update's energy is kept.")
    for note in done.notes:
        _say(json, note)
    if json:
        _print_json(
            {
                "out": str(out),
                "rank": done.ranks,
                "adapter_params": done.adapter_params,
                "kept": done.kept,
                "notes": done.notes,
            }
        )


@app.command
def models(*, json: Json = False) -> None:
    """List the model families that are known, with their default targets, and whether their rows are packed without padding.

    Others work with --targets, and are padded where they can't be packed.

    Example: rankwise models
    """
    from dataclasses import asdict

    from rankwise.families import families, show

    found = list(families())
    show(found, _people(json))
    if json:
        _print_json({"families": [asdict(family) for family in found]})


@app.command
def inspect(
    adapter: Annotated[Path, Parameter(help="What `rankwise train` or PEFT wrote.")], /, *, json: Json = False
) -> None:
    """Show an adapter's ranks by layer, how they were found, and how its energy is spread.

    Example: rankwise inspect my-adapter
    """
    from rankwise import inspection

    found = inspection.inspect(adapter)
    for line in inspection.describe(found):
        _say(json, line)
    if json:
        _print_json(found)


@app.command
def compress(
    adapter: Annotated[Path, Parameter(help="What `rankwise train` or PEFT wrote.")],
    file: Annotated[
        Path | None,
        Parameter(help="Labelled rows that it was not trained on; without it the run's own, by --split."),
    ] = None,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder for the smaller adapter.")],
    split: str = "validation",
    data: Path | None = None,
    model: Base = None,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    json: Json = False,
) -> None:
    """Cut a trained adapter to the smallest size that held-out rows don't tell from the whole.

    Example: rankwise compress my-adapter held_out.csv --out smaller

    Parameters
    ----------
    split
        Split of the run's own task, where no file is given.
    data
        Folder of Parquet files of that task. Default: as in training.
    """
    from rankwise import compression, rank_map, scoring
    from rankwise.progress import Bar

    trained = scoring.open_trained(adapter, base=model, text=text, text_pair=text_pair, label=label)
    rows = scoring.labelled_rows(trained, file, split, data)
    with Bar(_people(json), "Compressing") as bar:
        result = compression.compress(trained, rows, out, bar)
    for point in result["curve"]:
        verdict = "kept" if point["accepted"] else "too small"
        _say(
            json,
            f"{point['components']:5d} components, {point['adapter_params']:9,} parameters: "
            f"held-out loss {point['difference']:+.4f} ± {point['error']:.4f}  {verdict}",
        )
    for line in rank_map.draw(result["rank"]):
        _say(json, line)
    _say(
        json,
        f"{result['adapter_params_before']:,} parameters before, {result['adapter_params']:,} now. Saved in {out}.",
    )
    if json:
        _print_json({"adapter": str(adapter), "out": str(out), **result})


@app.command
def plan(config: Planned = PlanConfig(), *, json: Json = False) -> None:  # noqa: B008 (frozen)
    """Say what fits in memory before anything is trained or downloaded: full fine-tuning, LoRA, adaptive LoRA, and at which batch size.

    A training step is gone through with shapes alone, for the heaviest batch of an epoch.

    Example: rankwise plan --model roberta-base --task qnli --batch-size 16 --memory 8GB
    """
    from rankwise import plan as planning
    from rankwise import planned

    with planned.PlanProgress(_people(json)) as progress:
        result = planning.plan(config, progress)
    planned.show(result, _people(json))
    if json:
        _print_json(result)


@app.command
def bench(config: Measured = BenchConfig(), *, json: Json = False) -> None:  # noqa: B008 (frozen)
    """Measure training on this machine: ours beside PEFT + Trainer, full fine-tuning and the floor.

    Each contender is a process of its own, and they take turns; the table has medians over the turns. Without another
    --model or --random-weights it is the embedded model that is trained, on rows of random tokens.

    Example: rankwise bench --random-weights roberta-base --lengths qnli --contenders "rankwise lora" "peft lora sdpa" floor
    """
    from rankwise.bench import measurement, results
    from rankwise.bench.progress import BenchProgress

    with BenchProgress(_people(json)) as progress:
        result = measurement.bench(config, progress)
    results.show(result, _people(json))
    if json:
        _print_json(result)


def _check_names(names: Sequence[str], methods: Sequence[str], recipe: str) -> None:
    """Refuses a misspelt task, method or recipe before anything is written or loaded."""
    from rankwise import methods as known_methods
    from rankwise import recipes, tasks

    recipes.recipe(recipe)
    for name in names:
        tasks.named(name)
    for spec in methods:
        known_methods.parse(spec, LoraOptions())


def _find_model(config: CompareConfig | RunConfig) -> str | None:
    """Refuses a model that isn't there before anything slow is started; returns its name, if it isn't an adapter's to say."""
    from rankwise import hub, recipes

    if config.model.from_adapter is not None and config.model.model is None:
        return None
    name = config.model.model or recipes.recipe(config.train.recipe)["model"]
    if name != hub.EMBEDDED:
        hub.find(name)
    return name


def _fetch(config: CompareConfig) -> None:
    """Has the model and the embedded data before a process is started for each run, so that a first download is seen."""
    from rankwise import embedded, hub, tasks

    if _find_model(config) in (hub.EMBEDDED, *hub.SCRATCH):
        embedded.model_folder()
    if tasks.MOVIES in config.tasks:
        embedded.movies_file()


def _people(json: bool) -> TextIO:
    return sys.stderr if json else sys.stdout


def _say(json: bool, line: str) -> None:
    print(line, file=_people(json))


def _print_json(document: Any) -> None:
    print(json_format.dumps(document, ensure_ascii=False, allow_nan=False))
