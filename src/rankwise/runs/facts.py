"""Entries of run.json that a run itself reads: `facts`, which a resumed run repeats, and what a grid assigns; checked on reading."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

Threads = Annotated[int, Field(ge=1, le=4096)]


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class CostFacts(_Read):
    """`engine.execution.Cost`."""

    base: NonNegativeFloat
    token: NonNegativeFloat
    score: NonNegativeFloat
    seconds: NonNegativeFloat
    token_seconds: NonNegativeFloat


class EngineFacts(_Read):
    """`engine.execution.Engine`, as its `to_json` writes it."""

    micro_batches: Threads
    recompute: bool
    cost: CostFacts | None
    budget: PositiveFloat | None


class Facts(_Read):
    """What a run chose when it began. Entries that only people read may be there, too."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")

    threads: Threads | None = None
    processes: PositiveInt | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    padding: Literal["packed", "longest", "max_length"] | None = None
    max_length: PositiveInt | None = None
    engine: EngineFacts | None = None


class Assigned(_Read):
    """What a grid, or the command line, decides for a run beside its options."""

    threads: Threads | None = None
    shared_machine: bool = False
    keep_model: bool = True
    report_to: list[str] = []


Kind = TypeVar("Kind", bound=BaseModel)


def read(kind: type[Kind], stored: Any) -> Kind:
    """Check an entry of run.json; None stands for one without anything in it.

    Raises:
        ValueError: saying what is wrong with it.
    """
    try:
        return kind.model_validate({} if stored is None else stored)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or kind.__name__.lower()
        raise ValueError(f"{where}: {first['msg'].lower()}") from None
