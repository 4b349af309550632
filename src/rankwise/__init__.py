"""rankwise: LoRA that finds its own rank, and the harness that proves it against full fine-tuning.

Public names are imported on first use, so that `rankwise --help` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankwise.adapters.export import Exported, export
    from rankwise.adapters.load import load, merge
    from rankwise.adapters.peft_format import save
    from rankwise.api import Columns, FitResult, Look, Quality, evaluate, fit, look, predict, quality
    from rankwise.config import TrainOptions
    from rankwise.errors import RankwiseError
    from rankwise.estimator import TextClassifier
    from rankwise.lora.inject import adapt, trained
    from rankwise.rank.controller import RankController
    from rankwise.rank.trainer_callback import RankCallback, find_ranks

    __version__: str

_HOME = {
    "Columns": "api",
    "Exported": "adapters.export",
    "FitResult": "api",
    "Look": "api",
    "Quality": "api",
    "RankCallback": "rank.trainer_callback",
    "RankController": "rank.controller",
    "RankwiseError": "errors",
    "TextClassifier": "estimator",
    "TrainOptions": "config",
    "adapt": "lora.inject",
    "evaluate": "api",
    "export": "adapters.export",
    "find_ranks": "rank.trainer_callback",
    "fit": "api",
    "load": "adapters.load",
    "look": "api",
    "merge": "adapters.load",
    "predict": "api",
    "quality": "api",
    "save": "adapters.peft_format",
    "trained": "lora.inject",
}

__all__ = [
    "Columns",
    "Exported",
    "FitResult",
    "Look",
    "Quality",
    "RankCallback",
    "RankController",
    "RankwiseError",
    "TextClassifier",
    "TrainOptions",
    "adapt",
    "evaluate",
    "export",
    "find_ranks",
    "fit",
    "load",
    "look",
    "merge",
    "predict",
    "quality",
    "save",
    "trained",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("rankwise")
    if name in _HOME:
        return getattr(import_module(f"rankwise.{_HOME[name]}"), name)
    raise AttributeError(f"module 'rankwise' has no attribute {name!r}")
