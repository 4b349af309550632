"""rankwise: LoRA that finds its own rank, and the harness that proves it against full fine-tuning.

The public names are looked up when they are first used, so that `rankwise --help` needn't wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankwise.adapter_io import save
    from rankwise.api import Columns, FitResult, evaluate, fit, load, merge, predict
    from rankwise.callback import RankCallback
    from rankwise.config import TrainOptions
    from rankwise.errors import RankwiseError
    from rankwise.formats import Exported, export
    from rankwise.inject import adapt
    from rankwise.rank import RankController

_HOME = {
    "Columns": "api",
    "Exported": "formats",
    "FitResult": "api",
    "RankCallback": "callback",
    "RankController": "rank",
    "RankwiseError": "errors",
    "TrainOptions": "config",
    "adapt": "inject",
    "evaluate": "api",
    "export": "formats",
    "fit": "api",
    "load": "api",
    "merge": "api",
    "predict": "api",
    "save": "adapter_io",
}

__all__ = [
    "Columns",
    "Exported",
    "FitResult",
    "RankCallback",
    "RankController",
    "RankwiseError",
    "TrainOptions",
    "adapt",
    "evaluate",
    "export",
    "fit",
    "load",
    "merge",
    "predict",
    "save",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"rankwise.{_HOME[name]}"), name)
    raise AttributeError(f"module 'rankwise' has no attribute {name!r}")
