"""Makes a run ready to train: options, hardware, rows, model, method, and the `Training` that holds them.

    run.json ─► options (recipe) ─► hardware ─► rows ─► model ─► method ─► Training

A resumed run repeats the choices of its beginning (`facts` in run.json: threads, dtype, padding, engine), so that it continues bit for bit.
With other `threads=`, or in another number of processes, it continues, too, up to rounding.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from rankwise import hardware
from rankwise.config import RunConfig
from rankwise.config_json import from_json, same_run, to_json
from rankwise.engine import row_check, sharding
from rankwise.engine.autotune import tune
from rankwise.engine.compute import Compute
from rankwise.engine.execution import Engine
from rankwise.engine.measure import PeakRss
from rankwise.engine.processes import ONE, Processes
from rankwise.engine.training import Training
from rankwise.errors import RankwiseError
from rankwise.files import cache_folder
from rankwise.limits import parse_memory
from rankwise.lora import quantized
from rankwise.models import families, loading
from rankwise.models.loading import Source
from rankwise.run_folder import RunFolder
from rankwise.runs import methods, recipes, warm_start
from rankwise.runs.early_stopping import hold_out
from rankwise.runs.evaluation import labels
from rankwise.runs.facts import Assigned, Facts, read
from rankwise.runs.methods import Adapted, Method
from rankwise.tasks import look, objectives
from rankwise.tasks.encoding import Encoded, encode
from rankwise.tasks.load import load_dataset
from rankwise.tasks.objectives import Objective
from rankwise.tasks.splits import Dataset


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run computes, and in which number type.

    Attributes:
        device: of the model and its batches.
        threads: CPU threads.
        dtype: of frozen weights and of matrix products.
        dtype_reason: why that one was taken, for the first lines of a run.
    """

    device: torch.device
    threads: int
    dtype: torch.dtype
    dtype_reason: str

    @property
    def dtype_name(self) -> str:
        """`bfloat16` for `torch.bfloat16`."""
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True, kw_only=True)
class RunRows:
    """The rows of a run as token ids.

    Attributes:
        dataset: the rows as texts, and their task.
        train: what is trained on.
        validation: what is evaluated on, by split; the first split's score is the headline.
        held_out: training rows kept aside for early stopping, or None.
    """

    dataset: Dataset
    train: Encoded
    validation: dict[str, Encoded]
    held_out: Encoded | None

    @property
    def objective(self) -> Objective:
        """What is learned from the labels."""
        return objectives.named(self.dataset.task.problem)

    @property
    def headline(self) -> str:
        """The split whose score is the run's."""
        return next(iter(self.validation))


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run before its first step.

    Attributes:
        requested: as it was asked for.
        config: with every option resolved.
        method: what trains the model.
        rows: training and evaluation rows.
        source: where model and tokenizer come from.
        model: what is trained and run.
        adapted: what counts and saves the model, if the method does that itself.
        look: at its rows.
        training: the state of the run.
        rss: the peak of the process's memory from now on.
        facts: choices that a resumed run repeats, for run.json.
        notes: the first lines of a run, for people.
        assigned: what a grid, or the command line, decides beside the options.
        request: names the request and the choices that a resumed run repeats.
    """

    requested: RunConfig
    config: RunConfig
    method: Method
    rows: RunRows
    source: Source
    model: nn.Module
    adapted: Adapted | None
    look: look.Look
    training: Training
    rss: PeakRss
    facts: dict[str, Any]
    notes: list[str]
    assigned: Assigned
    request: str


def prepare(folder: RunFolder, processes: Processes = ONE) -> Prepared:
    """Load rows and model and make the method's `Training`, without a step taken.

    Args:
        folder: of the run.
        processes: that train it together. The first downloads, encodes and measures; the others then find what it found.

    Raises:
        RankwiseError: an unknown name, rows or a model that can't be used, or options that don't go together.
    """
    record = folder.read_run()
    try:
        requested = from_json(RunConfig, record["requested"])
        facts = {k: v for k, v in read(Facts, record.get("facts")).model_dump().items() if v is not None}
        assigned = read(Assigned, record.get("assigned"))
    except ValueError as error:
        raise folder.damaged_run(error) from None
    name, config = resolve(requested)
    method = methods.named(name)
    if facts.get("processes", 1) != processes.count:
        facts.pop("threads", None)
    place = choose_place(config, facts, assigned.threads)
    check_base_bits(config, name, place.device)
    check_shard(config, name, processes.count)
    with processes.first_before_others():
        # rows first, so that an error in them is reported before a model is downloaded
        dataset = load_dataset(config)
        source = warm_start.locate(config, objectives.named(dataset.task.problem).task_type)
        rows = encode_rows(config, dataset, source)

    rss = PeakRss()
    if place.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place.device)
    model, adapted, started = _load_model(config, method, source, rows, place, processes)
    lr = recipes.resolve_lr(config, name, families.width(source.config))
    compute = Compute.for_model(
        model,
        dtype=place.dtype,
        frozen_base=method.frozen_base,
        padding=facts.get("padding") or config.train.padding or "packed",
        max_length=source.max_length,
        pad_id=loading.pad_id(model, source.tokenizer),
        threads=place.threads,
        processes=processes,
    )
    config = replace(
        config,
        train=replace(config.train, lr=lr.value, padding=compute.padding),
        model=replace(config.model, model=source.name),
    )
    weights = _class_weights(config, rows)
    training = Training(
        model,
        rows.train,
        options=config.train,
        compute=compute,
        seed=config.seed,
        hooks=None if adapted is None else adapted.hooks,
        class_weights=weights,
    )
    seen = look_at(rows, source.max_length)
    engine_note = _choose_engine(training, config, facts) if processes.first else ""
    engine, engine_note = processes.of_first((training.compute.engine, engine_note))
    training.compute = replace(training.compute, engine=engine)
    notes = [
        _place_note(config, source, place, [compute.padding_reason, engine_note]),
        f"Learning rate {lr.value:g} ({lr.why}); {training.steps} steps of {training.batches.batch_size} rows.",
        *filter(None, [started, training.rank_note, _weights_note(weights, rows)]),
        *rows.dataset.notes,
        *look.lines(seen),
        *_left_out_note(rows, source.max_length),
        *_threads_note(place.threads, facts.get("threads")),
        *_processes_note(processes.count, facts.get("processes", 1) if facts else None),
    ]
    facts = _facts(config, place, source, training, weights, rows)
    return Prepared(
        requested=requested,
        config=config,
        method=method,
        rows=rows,
        source=source,
        model=model,
        adapted=adapted,
        look=seen,
        training=training,
        rss=rss,
        facts=facts | {"learning_rate_from": lr.why},
        notes=notes,
        assigned=assigned,
        request=_digest(same_run(to_json(requested)), _of_request(facts)),
    )


def resolve(requested: RunConfig) -> tuple[str, RunConfig]:
    """Return the method's plain name, and the options with its own settings and the recipe's in place."""
    method = methods.parse(requested.method, requested.lora)
    train = requested.train if method.lr is None else replace(requested.train, lr=method.lr)
    return method.name, recipes.resolve(replace(requested, lora=method.lora, train=train), method.name)


def choose_place(config: RunConfig, facts: dict[str, Any], assigned: int | None) -> Place:
    """Choose device, threads and number type.

    Args:
        config: of the run.
        facts: what the run chose when it began, if it is resumed.
        assigned: threads that a grid gives each of its runs.
    """
    threads = config.model.threads or facts.get("threads") or assigned or _cores()
    torch.set_num_threads(threads)
    device = hardware.device_of_process(hardware.choose_device(config.model.device))
    dtype, reason = hardware.choose_dtype(facts.get("dtype") or config.model.dtype, device)
    return Place(
        device=device, threads=threads, dtype=dtype, dtype_reason="as this run began" if facts else reason
    )


def _cores() -> int:
    """Return the cores of this process: those of the machine, or its share where several processes train together."""
    return max(1, hardware.cores() // hardware.processes_here())


def check_base_bits(config: RunConfig, name: str, device: torch.device) -> None:
    """Refuses quantized weights if the method would train them, or the device can't have them.

    Raises:
        RankwiseError: saying which.
    """
    if config.model.base_bits is None:
        return
    if not methods.named(name).quantized_base:
        able = " and ".join(methods.names(quantized_base=True))
        raise RankwiseError(
            f"`base_bits={config.model.base_bits}` is for {able}, whose base is frozen; {name} is neither."
        )
    quantized.check(device)


def check_shard(config: RunConfig, name: str, processes: int) -> None:
    """Refuse to share out weights where that can't be done. In a single process there is nothing to share out.

    Raises:
        RankwiseError: saying why.
    """
    if not config.model.shard or processes == 1:
        return
    if name not in (able := sharding.METHODS):
        raise RankwiseError(f"`shard=` is for {', '.join(able[:-1])} and {able[-1]}, not for {name}.")
    if config.model.base_bits is not None:
        raise RankwiseError("`shard=` and `base_bits=` don't go together. Leave one out.")
    if not isinstance(parse_memory(config.model.memory), str):
        raise RankwiseError(
            f"With `shard=`, `memory=` takes fast or lean, not {config.model.memory}: no size is measured."
        )


def encode_rows(config: RunConfig, dataset: Dataset, source: Source) -> RunRows:
    """Encode the rows of a run with the model's tokenizer."""
    cache = cache_folder()
    train = encode(dataset.train, source.tokenizer, source.max_length, cache)
    validation = {
        split: encode(rows, source.tokenizer, source.max_length, cache)
        for split, rows in dataset.validation.items()
    }
    held_out = None
    if config.train.patience is not None:
        train, held_out = hold_out(train, objectives.named(dataset.task.problem), config.seed)
    return RunRows(dataset=dataset, train=train, validation=validation, held_out=held_out)


def look_at(rows: RunRows, max_length: int) -> look.Look:
    """Look at the rows of a run, with the lengths that they have as tokens."""
    train = [rows.train.lengths, *([] if rows.held_out is None else [rows.held_out.lengths])]
    splits = {"train": rows.train, **rows.validation}
    return look.look(
        rows.dataset,
        {split: encoded.lengths for split, encoded in splits.items()} | {"train": np.concatenate(train)},
        truncated={split: encoded.n_truncated for split, encoded in splits.items()},
        limit=max_length,
    )


def _load_model(
    config: RunConfig, method: Method, source: Source, rows: RunRows, place: Place, processes: Processes
) -> tuple[nn.Module, Adapted | None, str]:
    """Return the model on its device as the method trains it, what saves it, and what it started from."""
    model, new_modules, started = warm_start.load(
        config,
        source,
        rows.dataset.task,
        dtype=place.dtype if method.frozen_base else torch.float32,
    )
    for some in (rows.train, *rows.validation.values()):
        row_check.check(model, some)
    adapted = method.prepare(model, config, new_modules, rows.train)
    if config.model.shard and processes.count > 1:
        sharding.shard(model, processes, place.device)
    model.to(place.device)  # pyright: ignore[reportArgumentType]
    if config.model.base_bits is not None:
        quantized.quantize(model, config.model.base_bits)
    trained = cast(nn.Module, model) if adapted is None else adapted.model.to(place.device)
    return trained, adapted, started


def _class_weights(config: RunConfig, rows: RunRows) -> torch.Tensor | None:
    if config.train.class_weights is None:
        return None
    names = rows.dataset.task.label_names
    return rows.objective.class_weights(config.train.class_weights, names, labels(rows.train))


def _choose_engine(training: Training, config: RunConfig, facts: dict[str, Any]) -> str:
    """Choose how batches are run, or repeat the choice of a resumed run; return a note on it."""
    if facts.get("engine"):
        training.compute = replace(training.compute, engine=Engine.from_json(facts["engine"]))
        return "run as this run began"
    if training.compute.sharded:
        lean = config.model.memory == "lean"
        training.compute = replace(training.compute, engine=Engine(recompute=lean))
        return "layers' weights shared out" + ("; layers recomputed in backward" if lean else "")
    return tune(training, memory=config.model.memory, cache=cache_folder())


# ── The first lines of a run, and what a resumed run repeats ──────────────────────────────────


def _place_note(config: RunConfig, source: Source, place: Place, reasons: Sequence[str]) -> str:
    threads = f"{place.threads} thread{'s' * (place.threads != 1)}"
    bits = config.model.base_bits
    quantized_note = "" if bits is None else f"frozen linear layers in {bits} bits; "
    return (
        f"{source.name} on {place.device.type}, {threads}, {place.dtype_name} ({place.dtype_reason}); "
        f"{quantized_note}{'; '.join(filter(None, reasons))}."
    )


def _weights_note(weights: torch.Tensor | None, rows: RunRows) -> str:
    if weights is None:
        return ""
    names = rows.dataset.task.label_names
    each = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, weights.tolist(), strict=True))
    return f"Class weights in the training loss: {each}."


def _threads_note(threads: int, before: int | None) -> list[str]:
    if before in (None, threads):
        return []
    return [
        f"It began with threads={before} and goes on with threads={threads}: results may differ by rounding."
    ]


def _processes_note(processes: int, before: int | None) -> list[str]:
    if before in (None, processes):
        return [f"{processes} processes share each batch."] if processes > 1 else []
    return [
        f"It began in {_several(before)} and goes on in {_several(processes)}: results may differ by rounding."
    ]


def _several(processes: int) -> str:
    return f"{processes} process{'es' * (processes != 1)}"


def _of_request(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the choices that a resumed run must repeat."""
    return {name: value for name, value in facts.items() if name != "processes"} | {"threads": None}


def _left_out_note(rows: RunRows, max_length: int) -> list[str]:
    n = sum(split.n_left_out for split in (rows.train, *rows.validation.values()))
    were = "row is" if n == 1 else "rows are"
    nothing = f"nothing of them that is to be learned is within {max_length} tokens"
    return [f"{n:,} {were} left out: {nothing}."] if n else []


def _digest(*documents: Any) -> str:
    """Return a name for JSON values: other values have another."""
    return hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()


def _facts(
    config: RunConfig,
    place: Place,
    source: Source,
    training: Training,
    weights: torch.Tensor | None,
    rows: RunRows,
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "threads": place.threads,
        "dtype": place.dtype_name,
        "padding": config.train.padding,
        "max_length": source.max_length,
        "engine": training.compute.engine.to_json(),
    }
    if (count := training.compute.processes.count) > 1:
        facts["processes"] = count
    if config.model.base_bits is not None:
        facts["base_bits"] = config.model.base_bits
    if weights is not None:
        facts["class_weights"] = dict(zip(rows.dataset.task.label_names, weights.tolist(), strict=True))
    return facts
