"""What the JSON files of a run folder, and the curve beside an adapter, must hold; checked where they are read.

A file may be cut short, changed by hand, or written by another version. Entries that a class names must be there and of its types. Other
entries are carried along unread.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

LARGEST = 1e18
"""Sums and squares of numbers up to this stay finite."""
Number = Annotated[float, Field(allow_inf_nan=False, ge=-LARGEST, le=LARGEST)]
Amount = Annotated[float, Field(allow_inf_nan=False, ge=0, le=LARGEST)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Rank = Annotated[int, Field(ge=0, lt=2**31)]
Change = Annotated[list[Rank], Field(min_length=2, max_length=2)]
"""The rank before, and the rank proposed."""


class Record(BaseModel):
    """A JSON object whose named entries must be of the given types."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class Result(Record):
    """result.json."""

    task: str
    method: str
    seed: Count
    model: str
    metric: str
    score: Number
    scores: dict[str, dict[str, Number]]
    n_train: Count
    n_validation: Count
    trainable_params: Count
    total_params: Count
    adapter_params: Count
    train_seconds: Amount
    samples_per_second: Amount | None
    peak_rss_mb: Amount | None
    head_params: Count | None = None
    steps: Count | None = None
    tokens_per_second: Amount | None = None
    peak_memory_mb: dict[str, Amount] | None = None
    peak_cuda_mb: Amount | None = None
    rank: dict[str, Rank] | None = None
    mean_rank: Amount | None = None
    lr: Number | None = None


class TaskRecord(Record):
    """The entries of a run's task that are shown without its data."""

    label_names: list[str] = []


class Facts(Record):
    """How a run computed; its adapter is later run in the same way. `runs.facts` reads the entries that a resumed run repeats."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    padding: Literal["packed", "longest", "max_length"] | None = None
    max_length: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    base_bits: Literal[8, 4] | None = None


class Run(Record):
    """run.json."""

    requested: dict[str, Any]
    assigned: dict[str, Any] | None = None
    resolved: dict[str, Any] | None = None
    facts: Facts | None = None
    task: TaskRecord | None = None
    versions: dict[str, str] | None = None
    hardware: dict[str, Any] | None = None
    failed: str | None = None
    failed_in: str | None = None


class Grid(Record):
    """grid.json."""

    tasks: list[str] = []
    methods: list[str] = []
    seeds: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    command: str | None = None


class Step(Record):
    """A line of steps.jsonl, as far as curves show it."""

    step: Annotated[int, Field(ge=1, lt=2**53)]
    loss: Number
    validation: dict[str, Number] | None = None
    memory: dict[str, Amount] | None = None


class Text(Record):
    """What a language model wrote for a prompt of the validation rows."""

    idx: Count
    prompt: str
    references: list[str]
    text: str


class Texts(Record):
    """texts.json."""

    texts: list[Text]


class Evidence(Record):
    """What held-out rows said about a proposal."""

    loss_increase: Number | None = None
    error: Number | None = None


class Decision(Record):
    """A line of ranks.jsonl. Fields may be missing."""

    step: Count
    kind: str = ""
    accepted: bool = True
    changes: dict[str, Change] | None = None
    ranks: dict[str, Rank] | None = None
    evidence: Evidence | None = None
    text: str = ""


class CurvePoint(Record):
    """A size of an adapter; see `rank.curve`."""

    params: Count
    ranks: dict[str, Rank]
    loss_increase: Number
    error: Amount
    scores: dict[str, Number]


class Curve(Record):
    """rank_curve.json, beside an adapter."""

    rows: Count
    gain: Number
    points: Annotated[list[CurvePoint], Field(min_length=1)]


def fault(kind: type[Record], document: Any) -> str | None:
    """Return what makes a document no record of this kind; None where it is one.

    Returns:
        `it lacks score, seed`, or `scores.validation.loss is 'x'`.
    """
    try:
        kind.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        places = [".".join(map(str, one["loc"])) for one in found]
        missing = [place for place, one in zip(places, found, strict=True) if one["type"] == "missing"]
        return f"it lacks {', '.join(missing)}" if missing else f"{places[0]} is {found[0]['input']!r:.40}"
    return None
