"""Labels as numbers: of rows, in the form of their objective, or of tokens. And the names of those that nobody named."""

import numpy as np
from jaxtyping import Float32, Int64

Labels = (
    Int64[np.ndarray, "rows"]
    | Float32[np.ndarray, "rows"]
    | Float32[np.ndarray, "rows labels"]
    | Int64[np.ndarray, "rows words"]
)
"""Of rows: class ids, numbers, a 0 or 1 for each label, or a class id for each word with -100 behind the last."""
IGNORED = -100
"""Transformers' label of a token or row that has none."""


def default_names(outputs: int) -> list[str]:
    """Return the names that Transformers gives the outputs of a model whose labels have none."""
    return [f"LABEL_{place}" for place in range(outputs)]
