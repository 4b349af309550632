"""The forms in which adapters are exported, by name.

To add one, put an `ExportFormat` into `FORMATS`, or call `register` with one in a plug-in (see `rankwise.plugins`).
"""

from rankwise import plugins
from rankwise.adapters.formats import loralib, peft, whole
from rankwise.adapters.formats.format import ExportFormat
from rankwise.errors import RankwiseError, nearest

FORMATS: dict[str, ExportFormat] = {
    format.name: format for format in (peft.FORMAT, loralib.FORMAT, whole.FORMAT)
}

__all__ = ["FORMATS", "ExportFormat", "named", "register"]


def register(format: ExportFormat) -> None:
    """Add a format. From then on `export` takes its name in this process.

    Raises:
        RankwiseError: a format of that name exists.
    """
    if format.name in FORMATS:
        raise RankwiseError(f"There is an export format {format.name!r} already. Give yours another name.")
    FORMATS[format.name] = format


def named(name: str) -> ExportFormat:
    """Return the format of that name.

    Raises:
        RankwiseError: there is none; the message lists them.
    """
    plugins.load()
    if name not in FORMATS:
        raise RankwiseError(
            f"There is no export format {name!r}. Formats: {', '.join(FORMATS)}.{nearest(name, FORMATS)}"
        )
    return FORMATS[name]
