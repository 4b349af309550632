"""A LoRA adapter by itself, apart from any file format and any base model."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rankwise.lora.names import parts

Factors = tuple[Tensor, Tensor]
"""A [r, d_in] and B [d_out, r] of a layer's update s·B·A."""


HEADS = ("score", "classifier.out_proj", "classifier")
"""Paths of the last layer of a head, in the families that Transformers has classifiers for."""


@dataclass(frozen=True)
class Adapter:
    """An adapter and what is known of its base model.

    Attributes:
        folder: folder or file that it was read from; None where it comes from a model in memory.
        base_model: name or folder of the base model it was trained on.
        lora: module path → A and B.
        scaling: module path → s.
        dropout: on the adapter's input during training.
        trained: parameter path → value, for modules saved whole (head, new pooler).
        modules_to_save: names of these modules.
        label_names: of the classes, in the order of their ids; None where the file doesn't say.
        fingerprint: identifies the base's weights (see `attach.fingerprint`); None where unknown, empty where they were quantized.
        problem: what the head's outputs mean (see `tasks.objectives`); None where the file doesn't say.
        unsupported: why only PEFT can run it, as the end of a sentence; None where W0 + s·B·A describes it.
        base_path: name or folder that Transformers loads the base from, where it isn't `base_model`.
        target_modules: names or a pattern that mean exactly the layers of `lora`; None: their paths.
        fan_in_fan_out: the layers are Conv1D, which stores its weight transposed.
        config: fields of its adapter_config.json that stand nowhere else.
    """

    folder: Path | None
    base_model: str | None
    lora: dict[str, Factors]
    scaling: dict[str, float]
    dropout: float
    trained: dict[str, Tensor]
    modules_to_save: list[str]
    label_names: list[str] | None
    fingerprint: str | None
    problem: str | None = None
    unsupported: str | None = None
    base_path: str | None = None
    target_modules: list[str] | str | None = None
    fan_in_fan_out: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def ranks(self) -> dict[str, int]:
        """Module path → r."""
        return {path: A.shape[0] for path, (A, _) in self.lora.items()}

    @property
    def size(self) -> int:
        """Entries of all A and B."""
        return sum(A.numel() + B.numel() for A, B in self.lora.values())

    def with_trained(self, trained: dict[str, Tensor]) -> "Adapter":
        """Return the adapter with some of its modules that are saved whole."""
        whole = {part for name in trained for part in parts(name.rpartition(".")[0])}
        saved = [end for end in self.modules_to_save if any(path.endswith(end) for path in whole)]
        return replace(self, trained=trained, modules_to_save=saved)

    @property
    def num_labels(self) -> int | None:
        """Number of outputs of its head, which are the rows of the head's last matrix; None without a head."""
        names = (f"{head}.weight" for head in HEADS)
        last = next((self.trained[name] for name in names if name in self.trained), None)
        return None if last is None or last.ndim != 2 else last.shape[0]
