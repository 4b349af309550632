"""Randomness: one seed, split into named streams, so that two methods with the same seed get the same batches.

A stream is a pure function of (seed, name, counters). So a resumed run draws the same numbers, and nothing has to be stored for it.
"""

import hashlib


def stream_seed(seed: int, name: str, *counters: int) -> int:
    """Return a 63-bit seed for the stream `name` (`init`, `order`, `dropout`, …) at the given counters (epoch, step)."""
    text = ":".join([str(seed), name, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_torch(seed: int, name: str, *counters: int) -> None:
    """Set the seed of torch's own generators, on every device, to that of a stream."""
    import torch  # slow to import, and other streams don't need it

    torch.manual_seed(stream_seed(seed, name, *counters))
