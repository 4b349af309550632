"""Makes adapters smaller by their singular values, and pads them to one rank.

Leaving out the smallest singular values of B·A gives the nearest update of that rank (Eckart & Young 1936).
"""

from collections import Counter

import torch
from torch import Tensor

from rankwise.adapters.adapter import Factors
from rankwise.errors import RankwiseError


def components(A: Tensor, B: Tensor) -> tuple[Factors, Tensor]:
    """Write B·A as a sum of rank-one components, the strongest first.

    Args:
        A: [r, d_in].
        B: [d_out, r].

    Returns:
        A and B with the same product, row k and column k holding component k, min(r, d_in, d_out) of them; and their
        singular values.
    """
    Q_B, R_B = torch.linalg.qr(B.double())
    Q_A, R_A = torch.linalg.qr(A.double().t())
    U, sigma, V = torch.linalg.svd(R_B @ R_A.t(), full_matrices=False)
    root = sigma.sqrt()
    return (root[:, None] * (V @ Q_A.t()), (Q_B @ U) * root), sigma


def truncate(
    factors: dict[str, Factors], rank: int | None, max_params: int | None
) -> tuple[dict[str, Factors], float]:
    """Keep the strongest components: those with most energy σ² for each entry of A and B.

    Args:
        factors: module path → A and B, of one scaling.
        rank: components of a layer at most; layers are to be padded to it.
        max_params: entries of all A and B at most.

    Returns:
        The layers that keep a component, and the share of the energy that they keep.

    Raises:
        RankwiseError: `max_params` is too small for one component.
    """
    found = {path: components(A, B) for path, (A, B) in factors.items()}
    sizes = {path: A.shape[1] + B.shape[0] for path, (A, B) in factors.items()}
    order = sorted(
        (
            (float(s) ** 2 / sizes[path], path, k)
            for path, (_, sigma) in found.items()
            for k, s in enumerate(sigma)
            if rank is None or k < rank
        ),
        key=lambda entry: -entry[0],
    )
    kept: Counter[str] = Counter()
    spent, energy = 0, 0.0
    for density, path, _ in order:
        # where layers are padded to `rank`, the first component of a layer pays for the whole layer
        cost = sizes[path] * (1 if rank is None else rank * (kept[path] == 0))
        if max_params is not None and spent + cost > max_params:
            if rank is None:
                break
            continue
        spent += cost
        energy += density * sizes[path]
        kept[path] += 1
    if not kept:
        what = "one component" if rank is None else f"one layer of rank {rank}"
        least = min(sizes.values()) * (rank or 1)
        raise RankwiseError(
            f"`max_params={max_params}` is too small for {what}. The smallest takes {least:,}."
        )
    total = sum(float((sigma**2).sum()) for _, sigma in found.values())
    shortened = {
        path: (
            A[: kept[path]].to(factors[path][0].dtype).contiguous(),
            B[:, : kept[path]].to(factors[path][1].dtype).contiguous(),
        )
        for path, ((A, B), _) in found.items()
        if kept[path]
    }
    return shortened, energy / total if total else 1.0


def padded(A: Tensor, B: Tensor, rank: int) -> Factors:
    """Pad A and B with zeros to a rank, which leaves their product as it is."""
    more = rank - A.shape[0]
    return torch.cat([A, A.new_zeros(more, A.shape[1])]), torch.cat([B, B.new_zeros(B.shape[0], more)], dim=1)
