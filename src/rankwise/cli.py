"""The commands: arguments in, one call, result out. Everything they decide lives in the rooms they call.

People's output goes to stdout; with `--json` it goes to stderr and stdout carries one JSON object. What is wrong with the input is one
line on stderr and exit code 2.
"""

import json as json_format
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

from cyclopts import App, CycloptsError, Parameter

from rankwise.bench.config import BenchConfig
from rankwise.config import CompareConfig, LoraOptions, RunConfig, differences, to_json
from rankwise.errors import RankwiseError

app = App(
    name="rankwise",
    version=version("rankwise"),
    help="LoRA that finds its own rank, and the harness that proves it against full fine-tuning.",
    default_parameter=Parameter(negative=(), consume_multiple=True),
)
app.register_install_completion_command()

Json = Annotated[
    bool, Parameter(name="--json", help="Print one JSON object on stdout; everything else goes to stderr.")
]
Config = Annotated[CompareConfig, Parameter(name="*")]
OneRun = Annotated[RunConfig, Parameter(name="*")]
Measured = Annotated[BenchConfig, Parameter(name="*")]
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
        if debug:
            raise
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("Interrupted. The same command continues from here.", 130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        _fail(f"rankwise stopped on an error it has no sentence for ({what}). Give --debug to see where.", 1)
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(code)


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
    with GridProgress(_people(json)) as progress:
        failed = grid.run_grid(config, progress)
    _report(config.out, json)
    if failed:
        raise RankwiseError(
            f"{len(failed)} of {len(config.runs())} runs failed: {'; '.join(failed.values())}"
        )


@app.command
def report(out: Path, *, json: Json = False) -> None:
    """Make the table, report.md and results.parquet again from the run folders of a grid.

    Example: rankwise report runs/first
    """
    _report(out, json)


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
    json: Json = False,
) -> None:
    """Train one adapter (or a whole model), on a task by name or on a table of one's own.

    The same command again continues an interrupted run.

    Example: rankwise train reviews.csv --text review --label stars --out my-adapter
    """
    from rankwise.store import RunFolder

    config = replace(config, table=replace(config.table, train_file=file))
    _check_names([config.task] if file is None else [], [config.method], config.train.recipe)
    folder = RunFolder(out)
    request = to_json(config)
    if folder.finished:
        _refuse_other(folder, request)
        result = folder.read_result()
    else:
        result = _train(folder, request, json)
    _say(
        json,
        f"{result['metric']} {result['score']:.4f} on {result['n_validation']:,} validation rows. Saved in {out}.",
    )
    if json:
        _print_json({"out": str(out), **result})


def _train(folder: Any, request: dict[str, Any], json: bool) -> dict[str, Any]:
    from rankwise.progress import RunProgress
    from rankwise.run import execute

    if folder.has_run:
        _refuse_other(folder, request)
    folder.write_request(request)
    with RunProgress(_people(json)) as progress:
        return execute(folder, progress)


def _refuse_other(folder: Any, request: dict[str, Any]) -> None:
    differing = differences(folder.read_run()["requested"], request)
    if differing:
        raise RankwiseError(
            f"{folder.path} holds a run with other settings ({'; '.join(differing)}). Give another --out, or these settings."
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
        Path | None, Parameter(help="Labelled rows; without it the validation split of the run's own task.")
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
        Folder of Parquet files of that task, as in training.
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


def _people(json: bool) -> TextIO:
    return sys.stderr if json else sys.stdout


def _say(json: bool, line: str) -> None:
    print(line, file=_people(json))


def _print_json(document: Any) -> None:
    print(json_format.dumps(document, ensure_ascii=False, allow_nan=False))
