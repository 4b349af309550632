"""The scaling s of a LoRA update s·B·A: at a fixed rank, and where ranks change while they are found.

    fixed rank r       s = alpha / r          Hu et al. 2021, section 4.1; alpha = 2·r where it isn't given
                       s = alpha / √r         rank-stabilised LoRA, Kalajdzievski 2023
    rank that changes  s = ALPHA / r          whatever r becomes

Why 1/r where ranks change. Under Adam, each entry of B first moves by about the learning rate, whatever the size of its gradient. All r
components move together, so the function moves by about s·r times the learning rate. With s = ALPHA / r that product is the same at
every rank, and one learning rate suits every rank a layer passes through (docs/method.md).

Why a resize changes A and B. When the rank goes from r to r', s becomes s·r/r'. The function must not jump, so A and B are both
multiplied by `rank_change_factor(r, r')` = √(r'/r), whose square makes up for it:

    s·(r/r') · (√(r'/r)·B) · (√(r'/r)·A)  =  s·B·A
"""

import math

START_RANK = 16
"""Rank of every layer at the start of a training that finds ranks. A high rank makes early optimisation easier, and layers are pruned
later. Start ranks of 4 to 32 end at similar sizes and scores (studies/ablations.py, "start at rank …")."""
ALPHA = 2**0.5 * START_RANK
"""s = ALPHA / r where ranks are found: √2 at the start rank."""


def scale(rank: int, alpha: float | None, rslora: bool) -> float:
    """Return s of a layer whose rank stays: alpha/r, or alpha/√r.

    Args:
        rank: r, 1 or more.
        alpha: 2·rank where it isn't given.
        rslora: divide by √r (Kalajdzievski 2023).
    """
    alpha = 2.0 * rank if alpha is None else alpha
    return alpha / rank**0.5 if rslora else alpha / rank


def rank_change_factor(before: int, after: int, exponent: float = 1.0) -> float:
    """Return the factor on A and on B that keeps the function when a rank changes; s is divided by its square.

    Args:
        before: rank so far; 0 counts as 1.
        after: new rank; 0 counts as 1.
        exponent: s falls with this power of the rank. 1: s = ALPHA / r. 0: s never changes.
    """
    return math.sqrt((max(1, after) / max(1, before)) ** exponent)
