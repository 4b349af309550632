"""The forms in which adapters are exported, by name. To add one, put an `ExportFormat` into `FORMATS`."""

from rankwise.adapters.formats import loralib, peft
from rankwise.adapters.formats.format import ExportFormat
from rankwise.errors import RankwiseError, nearest

FORMATS: dict[str, ExportFormat] = {format.name: format for format in (peft.FORMAT, loralib.FORMAT)}

__all__ = ["FORMATS", "ExportFormat", "named"]


def named(name: str) -> ExportFormat:
    """Look up a format.

    Raises:
        RankwiseError: there is none of that name.
    """
    if name not in FORMATS:
        raise RankwiseError(
            f"There is no export format {name!r}. Formats: {', '.join(FORMATS)}.{nearest(name, FORMATS)}"
        )
    return FORMATS[name]
