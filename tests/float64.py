"""Everything in float64, and rows of random tokens: what packed and padded runs are compared on."""

import contextlib

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from rankwise.tasks.encoding import Encoded


class InFloat64(TorchFunctionMode):
    """Answers every request for float32 in float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        wide = [torch.float64 if value is torch.float32 else value for value in args]
        named = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*wide, **named)


@contextlib.contextmanager
def in_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with InFloat64():
            yield
    finally:
        torch.set_default_dtype(before)


def rows_of(lengths, seed=0, types=False):
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    return Encoded(
        input_ids=rng.integers(4, 100, n).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        token_type_ids=rng.integers(0, 2, n).astype(np.int8) if types else None,
        labels=np.zeros(len(lengths), dtype=np.int64),
        idx=np.arange(len(lengths), dtype=np.int64),
        n_truncated=0,
    )
