"""Write an adapter in a format that another program reads, truncated or padded where asked for.

folder or .bin ─► Adapter ─► strongest components of s·B·A ─► padded to one rank ─► an `ExportFormat` writes it

For servers (`serve`) s is folded into B, so that alpha = r, and all layers have one rank. Then the config has neither `rank_pattern` nor
`alpha_pattern`, which some servers don't read.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rankwise.adapters import curve_file, formats, peft_format
from rankwise.adapters.adapter import Adapter, Factors
from rankwise.adapters.formats import ExportFormat, loralib, peft
from rankwise.adapters.load import names_given
from rankwise.adapters.truncate import padded, truncate
from rankwise.errors import RankwiseError
from rankwise.files import check_folder
from rankwise.models import hub
from rankwise.rank.curve import CurvePoint
from rankwise.tasks.labels import default_names

RECORDS = ("run.json", "ranks.jsonl", curve_file.CURVE)
"""Files of a run that say how an adapter was made; beside another adapter they would be wrong."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        out: where.
        ranks: module path → rank.
        adapter_params: entries of A and B.
        kept: share of ‖s·B·A‖² over all layers that is kept; 1 where nothing was truncated.
        notes: what one has to know to load it, in sentences.
        measured: the size of the adapter's curve that was taken, None where none was.
    """

    out: Path
    ranks: dict[str, int]
    adapter_params: int
    kept: float
    notes: tuple[str, ...]
    measured: CurvePoint | None = None


def export(
    source: str | Path,
    out: str | Path,
    *,
    format: str = "peft",
    uniform_rank: int | None = None,
    max_params: int | None = None,
    max_loss_increase: float | None = None,
    serve: bool = False,
    head: bool = True,
    base: str | None = None,
    label_names: Sequence[str] = (),
    alpha: float | None = None,
) -> Exported:
    """Write an adapter in a format that another program reads.

    Args:
        source: a PEFT adapter's folder, or a loralib checkpoint.
        out: a folder for PEFT's format, a file for loralib's.
        format: a name in `adapters.formats.FORMATS`: `peft`, `loralib`, or `transformers` for a folder with the base in it.
        uniform_rank: the same rank for each layer: truncated, or padded with zeros.
        max_params: entries of A and B in all at most. Where the adapter has a curve (`rank_curve.json`), the largest size measured that
            fits; else the components with the least energy are left out.
        max_loss_increase: the smallest size of the curve whose loss increase is at most this share of the gain: 0.01 for 1 %.
        serve: for a server of LoRA adapters: PEFT's format with alpha = r and one rank in all layers, the highest or `uniform_rank`.
        head: keep the classification head.
        base: the base model's name, which a loralib checkpoint doesn't hold. Default: the one that the adapter names.
        label_names: of the outputs, in order, where the adapter has none.
        alpha: s = alpha/r of a loralib checkpoint, which doesn't hold it either.

    Raises:
        RankwiseError: nothing to export, an unknown format, settings that exclude each other, or `out` can't be written.
    """
    source, out, target = Path(source), Path(out), formats.named(format)
    if serve and target is not peft.FORMAT:
        raise RankwiseError(f"`serve=True` writes PEFT's format, which servers read, not {target.name}.")
    if uniform_rank is not None and max_loss_increase is not None:
        raise RankwiseError(
            "`max_loss_increase=` takes a size that was measured; `uniform_rank=` truncates it again, which wasn't. Give one of them."
        )
    adapter = loralib.read(source, base, alpha) if source.is_file() else peft_format.read(source)
    if base is not None:
        adapter = replace(adapter, base_model=base, base_path=base)
    if label_names:
        own = adapter.label_names or default_names(adapter.num_labels or len(label_names))
        adapter = replace(adapter, label_names=names_given(source, own, label_names))
    _check_out(out, source, target)
    adapter, kept = replace(_with_one_scaling(adapter, 1.0 if serve else None), fingerprint=None), 1.0
    size = None
    if uniform_rank is None and (max_params is not None or max_loss_increase is not None):
        size = curve_file.point(source, adapter, max_params, max_loss_increase)
    if size is not None:
        whole, adapter = adapter, _with_layers(adapter, _of_size(adapter.lora, size.ranks))
        kept = _energy(adapter) / _energy(whole) if _energy(whole) else 1.0
    elif uniform_rank is not None or max_params is not None:
        lora, kept = truncate(adapter.lora, uniform_rank, max_params)
        adapter = _with_layers(adapter, lora)
    rank = uniform_rank
    if rank is None and (serve or target.equal_ranks):
        rank = max(adapter.ranks.values())
    if rank is not None:
        adapter = _with_layers(adapter, {path: padded(A, B, rank) for path, (A, B) in adapter.lora.items()})
    if max_params is not None and adapter.size > max_params:
        raise RankwiseError(
            f"Padded to one rank ({rank}), what fits in `max_params={max_params}` takes {adapter.size:,} parameters. "
            "Say the rank, too: `uniform_rank=`."
        )
    if not head:
        adapter = adapter.with_trained({})
    target.write(adapter, out)
    if not target.one_file and source.is_dir():
        peft_format.copy_tokenizer(source, out)
    notes = (peft.served_with if serve else target.notes)(adapter)
    return Exported(out, adapter.ranks, adapter.size, kept, notes, size)


def _of_size(lora: dict[str, Factors], ranks: dict[str, int]) -> dict[str, Factors]:
    """Return the first components of each layer; layers without any are left out."""
    return {
        path: (A[: ranks[path]].contiguous(), B[:, : ranks[path]].contiguous())
        for path, (A, B) in lora.items()
        if ranks[path]
    }


def _energy(adapter: Adapter) -> float:
    """Return Σ ‖B·A‖² over the layers, which have one s."""
    return sum(
        ((B.double().t() @ B.double()) * (A.double() @ A.double().t())).sum().item()
        for A, B in adapter.lora.values()
    )


def _check_out(out: Path, source: Path, target: ExportFormat) -> None:
    """Check that an export may be written there. An earlier export is replaced; nothing else is.

    Raises:
        RankwiseError: it may not.
    """
    if not target.one_file:
        check_folder(out, source, hub.CONFIG)
        record = next((name for name in RECORDS if (out / name).exists()), None)
        if record:
            raise RankwiseError(
                f"{out} holds an adapter with a record of its own ({record}). Name another folder with `out=`."
            )
    elif out.exists() and out.samefile(source):
        raise RankwiseError(f"{out} holds the adapter itself. Name another file with `out=`.")
    elif target is loralib.FORMAT and out.is_file() and not loralib.is_checkpoint(out):
        raise RankwiseError(f"{out} holds something else than an adapter. Name another file with `out=`.")


def _with_one_scaling(adapter: Adapter, scaling: float | None = None) -> Adapter:
    """Return the same updates with one s for all layers; B is scaled by the difference.

    loralib has a single alpha, and servers read a single one.

    Args:
        adapter: may have several.
        scaling: the s. Default: that of most layers.
    """
    if scaling is None:
        scaling = next((s for s, _ in Counter(adapter.scaling.values()).most_common() if s), 1.0)
    lora = {path: (A, B * (adapter.scaling[path] / scaling)) for path, (A, B) in adapter.lora.items()}
    return replace(adapter, lora=lora, scaling=dict.fromkeys(lora, scaling))


def _with_layers(adapter: Adapter, lora: dict[str, Factors]) -> Adapter:
    """Return an adapter with other A and B; its layers have one s."""
    return replace(adapter, lora=lora, scaling=dict.fromkeys(lora, next(iter(adapter.scaling.values()))))
