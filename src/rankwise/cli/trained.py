"""The commands for trained adapters: `evaluate`, `predict`, `inspect`, `compress`, `merge`, `export`; and `models`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, Token

from rankwise.cli.app import (
    Adapter,
    Base,
    Json,
    OfClass,
    ThresholdFor,
    command,
    people,
    print_json,
    say,
)
from rankwise.errors import RankwiseError
from rankwise.inference_options import HowToRun, TextOptions

if TYPE_CHECKING:
    from rankwise.adapters.predict import Trained


LabelNames = Annotated[
    tuple[str, ...],
    Parameter(help="Names of the labels, in the order of their ids, where the adapter has none."),
]
AnyAdapter = Annotated[Path, Parameter(help="A PEFT adapter's folder, or a loralib checkpoint (.bin).")]


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Where a trained model finds the texts."""

    model: Base = None
    text: str | None = None
    """Column that holds the text. Default: as in training."""
    text_pair: str | None = None
    """Column that holds the second text. Default: as in training."""
    label_names: tuple[str, ...] = ()
    """Names of the labels, in the order of their ids, where the adapter has none (LABEL_0 …)."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions(InputOptions):
    """Where a trained model finds labelled rows."""

    split: str = "validation"
    """Split of the run's task or data set, if no file is given."""
    data: Path | None = None
    """Folder of the task's Parquet files. Default: as in training."""
    label: str | None = None
    """Column that holds the label. Default: as in training."""


@command
def evaluate(
    adapter: Adapter,
    file: Annotated[
        Path | None, Parameter(help="Labelled rows. Default: those that the run was evaluated on.")
    ] = None,
    /,
    rows: LabelOptions = LabelOptions(),
    how: HowToRun = HowToRun(),  # noqa: B008 (frozen)
    texts: TextOptions = TextOptions(),  # noqa: B008 (frozen)
    *,
    threshold_for: ThresholdFor = None,
    of_class: OfClass = None,
    json: Json = False,
) -> None:
    """Score a trained adapter or model on labelled rows. With --scores, a language model also writes texts, and they are scored.

    Example: rankwise evaluate my-adapter held_out.csv
    """
    from rankwise.adapters import predict
    from rankwise.cli.progress import Bar
    from rankwise.tasks import quality, threshold

    trained = _open(adapter, rows, how)
    with Bar(people(json), "Evaluating") as bar:
        result = predict.evaluate(
            trained, file, rows.split, rows.data, bar, texts, threshold_for=threshold_for, of_class=of_class
        )
    notes, measured, limit = (result.pop(name) for name in ("notes", "quality", "threshold"))
    for note in notes:
        say(json, note)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in result.items() if name != "n")
    say(json, f"{shown} on {result['n']:,} rows.")
    for line in quality.lines(quality.from_json(measured)) if measured else ():
        say(json, line)
    if limit is not None:
        stored = threshold.from_json({name: value for name, value in limit.items() if name != "here"})
        here = ", ".join(f"{name} {value:.4f}" for name, value in limit["here"].items())
        say(json, f"Threshold{' stored' if threshold_for else ''}, which predict uses: {stored}.")
        say(json, f"With it on these rows: {here}.")
    if json:
        print_json(
            {"adapter": str(adapter), **result, "quality": measured, "threshold": limit, "notes": notes}
        )


@command
def predict(
    adapter: Adapter,
    file: Annotated[Path, Parameter(help="Rows to predict: CSV, TSV, JSONL or Parquet.")],
    /,
    rows: InputOptions = InputOptions(),
    how: HowToRun = HowToRun(),  # noqa: B008 (frozen)
    texts: TextOptions = TextOptions(),  # noqa: B008 (frozen)
    *,
    out: Annotated[
        Path, Parameter(help="File to write. Its ending says the format: .jsonl, .csv, .tsv or .parquet.")
    ],
    keep: Annotated[
        Literal["all", "none"],
        Parameter(
            help="all: the file's own columns stand before the answer's. none: `idx`, the row's position from 0."
        ),
    ] = "all",
    json: Json = False,
) -> None:
    """Write the predictions for each row of a file: label, probabilities and logits, a number, or a language model's text.

    Every row stays, in its order. One that can't be scored has an empty answer, and `reason` says why. An input column with the name of
    one of the answer's is written as `input_NAME`. Files may be larger than memory.

    Example: rankwise predict my-adapter new.jsonl --out scored.jsonl
    """
    from rankwise.adapters import predict
    from rankwise.cli.progress import Bar

    predict.check_out(out, [file])
    trained = _open(adapter, rows, how)
    with Bar(people(json), "Predicting") as bar:
        result = predict.predict_file(trained, file, out, bar, keep=keep, options=texts)
    for note in result["notes"]:
        say(json, note)
    counts = ", ".join(f"{name} {_shown(count)}" for name, count in result["predicted"].items())
    say(json, f"{result['n']:,} rows ({counts}) in {out}.")
    if json:
        print_json({"adapter": str(adapter), **result})


def _shown(value: float) -> str:
    """Return a count with all of its digits, and a number with six."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _open(adapter: Path, rows: InputOptions, how: HowToRun) -> "Trained":
    """Open a trained adapter or model with the columns that the flags name."""
    from rankwise.adapters import predict

    label = rows.label if isinstance(rows, LabelOptions) else None
    return predict.open_trained(
        adapter, base=rows.model, text=rows.text, text_pair=rows.text_pair, label=label,
        label_names=rows.label_names, how=how,
    )  # fmt: skip


@command
def inspect(adapter: AnyAdapter, /, *, json: Json = False) -> None:
    """Show an adapter's rank in each layer, how ranks were found, and how its energy is distributed.

    Example: rankwise inspect my-adapter
    """
    from rankwise.adapters import inspect

    found = inspect.inspect(adapter)
    for line in inspect.describe(found):
        say(json, line)
    if json:
        print_json(found)


@command
def compress(
    adapter: Adapter,
    file: Annotated[
        Path | None,
        Parameter(help="Labelled rows that it wasn't trained on. Default: the run's own, see --split."),
    ] = None,
    /,
    rows: LabelOptions = LabelOptions(),
    how: HowToRun = HowToRun(),  # noqa: B008 (frozen)
    texts: TextOptions = TextOptions(),  # noqa: B008 (frozen)
    *,
    out: Annotated[Path, Parameter(help="Folder for the smaller adapter.")],
    json: Json = False,
) -> None:
    """Prune a trained adapter to the smallest size whose loss increase on held-out rows is tolerated.

    Example: rankwise compress my-adapter held_out.csv --out smaller
    """
    from rankwise.adapters import compress, predict, rank_table
    from rankwise.cli.progress import Bar
    from rankwise.rank.config import RankConfig

    trained = _open(adapter, rows, how)
    seen, notes = predict.labelled_rows(trained, file, rows.split, rows.data)
    for note in notes:
        say(json, note)
    with Bar(people(json), "Compressing") as bar:
        result = compress.compress(trained, seen, out, bar)
    for point in result["curve"]:
        verdict = "kept" if point["accepted"] else "too small"
        say(
            json,
            f"{point['components']:5d} components, {point['adapter_params']:9,} parameters: "
            f"held-out loss {point['loss_increase']:+.4f} ± {point['error']:.4f}  {verdict}",
        )
    say(
        json,
        f"On {result['rows']['held_out']} held-out rows. The smallest is kept whose loss is at most (95 % bound) "
        f"{result['tolerance']:.4f} higher, {100 * RankConfig().tolerance:g} % of what the adapter gains.",
    )
    for line in rank_table.draw(result["rank"]):
        say(json, line)
    say(
        json,
        f"{result['adapter_params_before']:,} parameters before, {result['adapter_params']:,} now. Saved in {out}.",
    )
    if json:
        print_json({"adapter": str(adapter), "out": str(out), **result, "notes": list(notes)})


@command
def merge(
    adapter: Adapter,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder for the merged model.")],
    model: Base = None,
    label_names: LabelNames = (),
    json: Json = False,
) -> None:
    """Merge an adapter into a float32 copy of its base model: an ordinary Transformers folder.

    Example: rankwise merge my-adapter --out merged-model
    """
    from rankwise.adapters.load import merge as merge_adapter
    from rankwise.models import families, loading

    merged = merge_adapter(adapter, out, base=model, label_names=label_names)
    parameters = sum(p.numel() for p in merged.parameters())
    kind = loading.AUTO[families.task_type(merged) or "SEQ_CLS"][0].__name__
    say(json, f"Merged model of {parameters:,} parameters in {out}: {kind}.from_pretrained loads it.")
    if json:
        print_json({"adapter": str(adapter), "out": str(out), "total_params": parameters})


def _count(kind: Any, tokens: Sequence[Token]) -> int:
    """Read `50k`, `1.5M` or a plain number."""
    text = tokens[0].value
    try:
        return int(float(text.rstrip("kKmM")) * {"k": 1e3, "m": 1e6}.get(text[-1:].lower(), 1))
    except ValueError:
        raise RankwiseError(f"--max-params takes a number such as 50k or 1.5M, not {text!r}.") from None


def _share(kind: Any, tokens: Sequence[Token]) -> float:
    """Read `1%` or 0.01."""
    text = tokens[0].value
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise RankwiseError(f"--max-loss-increase takes a share such as 1% or 0.01, not {text!r}.")
    return share


@command
def export(
    adapter: AnyAdapter,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder to write; a file for loralib.")],
    format: str = "peft",
    uniform_rank: int | None = None,
    max_params: Annotated[int | None, Parameter(converter=_count)] = None,
    max_loss_increase: Annotated[float | None, Parameter(converter=_share)] = None,
    serve: bool = False,
    no_head: bool = False,
    model: Base = None,
    label_names: LabelNames = (),
    alpha: float | None = None,
    json: Json = False,
) -> None:
    """Write an adapter in another program's format: PEFT, a server of LoRA adapters, or loralib.

    Example: rankwise export my-adapter --serve --no-head --out served

    Parameters
    ----------
    format
        peft, loralib, or transformers: a folder with the base in it, which pipeline() loads. Or one that a plug-in adds.
    uniform_rank
        The same rank for each layer: truncated by singular values, or padded with zeros.
    max_params
        Most parameters of the adapter (50k, 1.5M). Where adaptive rank measured sizes, the largest that fits; else the components with
        the least energy are left out.
    max_loss_increase
        The smallest size measured that costs at most this share of what the adapter gains (1%).
    serve
        For a server of LoRA adapters: the highest rank (or --uniform-rank) and alpha = r in all layers, so that nothing stands in
        rank_pattern and alpha_pattern, which some servers ignore. Says which --max-lora-rank vLLM needs.
    no_head
        Leave out the classification head, which most servers can't load.
    alpha
        alpha of a loralib checkpoint, which doesn't store it; s = alpha/r.
    """
    from rankwise.adapters import export

    if uniform_rank is not None and not 1 <= uniform_rank <= 65_536:
        raise RankwiseError(
            f"--uniform-rank must be a number, 1 or more and 65,536 at most; it is {uniform_rank}."
        )
    done = export.export(
        adapter, out, format=format, uniform_rank=uniform_rank, max_params=max_params,
        max_loss_increase=max_loss_increase, serve=serve, head=not no_head, base=model,
        label_names=label_names, alpha=alpha,
    )  # fmt: skip
    low, high = min(done.ranks.values()), max(done.ranks.values())
    ranks = str(low) if low == high else f"{low} to {high}"
    say(json, f"{len(done.ranks)} layers of rank {ranks}, {done.adapter_params:,} parameters in {out}.")
    if done.measured is not None and done.kept == 1:
        say(
            json,
            "No smaller size that was measured is asked for or costs so little: this is the whole adapter.",
        )
    elif done.measured is not None:
        size, scores = (
            done.measured,
            ", ".join(f"{name} {value:.4f}" for name, value in done.measured.scores.items()),
        )
        increase = f"{size.loss_increase:+.4f} ± {size.error:.4f}"
        say(json, f"When it was measured, its loss was {increase} against the whole adapter's; {scores}.")
    elif done.kept < 1:
        say(json, f"{100 * done.kept:.2f} % of the update's energy is kept.")
    for note in done.notes:
        say(json, note)
    if json:
        print_json(
            {
                "out": str(out),
                "rank": done.ranks,
                "adapter_params": done.adapter_params,
                "kept": done.kept,
                "measured": done.measured and vars(done.measured),
                "notes": done.notes,
            }
        )


@command
def push(
    folder: Annotated[Path, Parameter(help="An adapter's folder, or a whole model's.")],
    repository: Annotated[str, Parameter(help="Where: owner/name on the hub.")],
    /,
    *,
    private: Annotated[bool, Parameter(help="Make a new repository private.")] = False,
    model: Annotated[
        str | None, Parameter(help="The base's name on the hub. Default: the one that the adapter names.")
    ] = None,
    json: Json = False,
) -> None:
    """Upload an adapter to the Hugging Face hub, with its model card and tokenizer.

    Data, predictions and the run's records stay here. HF_TOKEN or `hf auth login` says who you are; HF_ENDPOINT names another hub.

    Example: rankwise push my-adapter my-name/my-adapter
    """
    from rankwise.runs import publish

    pushed = publish.push(folder, repository, private=private, base=model)
    say(json, f"{', '.join(pushed.files)} in {pushed.url}")
    if json:
        print_json({"url": pushed.url, "files": list(pushed.files)})


@command
def models(*, json: Json = False) -> None:
    """List the known model families with their default targets, and whether they train without padding.

    Other models need --targets. If they can't be packed, they are padded.

    Example: rankwise models
    """
    from dataclasses import asdict

    from rankwise.bench.families import families, show

    found = list(families())
    show(found, people(json))
    if json:
        print_json({"families": [asdict(family) for family in found]})
