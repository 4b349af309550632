"""Randomness: one seed, split into named streams, so that two methods with the same seed see the same batches.

A stream is a pure function of (seed, name, counters). Nothing has to be stored for a resumed run to draw what it would have drawn.
"""

import hashlib


def stream_seed(seed: int, name: str, *counters: int) -> int:
    """A 63-bit seed for the stream `name` (`init`, `order`, `dropout`, …) at the given counters (epoch, step)."""
    text = ":".join([str(seed), name, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_torch(seed: int, name: str, *counters: int) -> None:
    """Starts torch's own generators, on every device, at a stream's position."""
    import torch  # here, so that seeds can be drawn without waiting for it

    torch.manual_seed(stream_seed(seed, name, *counters))
