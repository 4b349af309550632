"""The boundaries of the rows in a packed batch, and the groups of rows of similar length that attention computes together.

    tokens       ■■ ■■■ ■■■■■       one after the other, shortest row first
    cu_seqlens   0  2   5     10    where each row begins
    groups       ■■·                two rows in one product, padded to the same length; · is a slot without a token
                 ■■■
                 ■■■■■              a row in the next product

A layout is made once a batch and shared by every layer, and so are the indices and masks of its groups.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from rankwise.engine.dropout import Key

GROUP_COST = 8000
HEAD_COST = 64
"""Cost of attention in one head, in scores: `length · (length + HEAD_COST)` a row, and `GROUP_COST` a group.

They are fitted to measured times of the grouped products. A factor of 3 in either costs a few percent of attention's time."""


class Group(NamedTuple):
    """Rows that attention computes in one product, each padded to the same length.

    Attributes:
        first, rows: place of the first row in packed order, and the number of rows.
        length: tokens that each row is padded to.
        tokens: section of the packed tokens.
        scores: section of one head's scores, `length`² a row.
    """

    first: int
    rows: int
    length: int
    tokens: slice
    scores: slice


@dataclass(frozen=True)
class Layout:
    """Boundaries of the rows in a packed batch. Made once a batch, shared by every layer.

    Attributes:
        lengths: tokens of each row, ascending.
        padded: tokens that attention pads each row to, see `length_groups`.
        device: of the tokens.
        key: names dropout's random stream.
        first_row, first_token, first_score: rows, tokens and scores of the whole batch before this micro-batch.
        filler: tokens behind the last row that belong to no row, see `PackedBatch.fill`.
    """

    lengths: Int64[np.ndarray, "rows"]
    padded: Int64[np.ndarray, "rows"]
    device: torch.device
    key: Key
    first_row: int = 0
    first_token: int = 0
    first_score: int = 0
    filler: int = 0
    _made: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Tokens of all rows, without the filler."""
        return int(self.offsets[-1])

    @property
    def scores(self) -> int:
        """Attention scores of one head, with the padding within groups."""
        return self.groups[-1].scores.stop

    @cached_property
    def offsets(self) -> Int64[np.ndarray, "boundaries"]:
        """The first token of each row, and the end of the last row."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @cached_property
    def cu_seqlens(self) -> Int32[Tensor, "boundaries"]:
        """`offsets` on the device, in the form that variable-length kernels take."""
        return torch.from_numpy(self.offsets.astype(np.int32)).to(self.device)

    @property
    def max_length(self) -> int:
        """Tokens of the longest row."""
        return int(self.lengths[-1])

    @cached_property
    def groups(self) -> list[Group]:
        """Consecutive rows that are padded to one length."""
        edges = [0, *(np.flatnonzero(np.diff(self.padded)) + 1).tolist(), len(self)]
        groups, score = [], 0
        for first, last in pairwise(edges):
            length = int(self.padded[first])
            scores = slice(score, score := score + (last - first) * length**2)
            tokens = slice(int(self.offsets[first]), int(self.offsets[last]))
            groups.append(Group(first, last - first, length, tokens, scores))
        return groups

    def slots(self, heads: int) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Return how each group's rows move between tokens [tokens · heads] and padded slots [rows · heads · length].

        Returns:
            For each group: the token of every slot; the slot of every token of the group; and the slots that hold no token,
            or None. Slots without a token repeat their row's last token, so that their values stay finite.
        """
        if heads not in self._made:
            made = [self._slots(group, heads) for group in self.groups]
            self._made[heads] = [tuple(None if x is None else x.to(self.device) for x in one) for one in made]
        return self._made[heads]

    def _slots(self, group: Group, heads: int) -> tuple[Tensor, Tensor, Tensor | None]:
        lengths = self.lengths[group.first : group.first + group.rows]
        begin = self.offsets[group.first : group.first + group.rows]
        place, head = np.arange(group.length), np.arange(heads)
        token = begin[:, None] + np.minimum(place, lengths[:, None] - 1)
        source = (token[:, None, :] * heads + head[:, None]).ravel()
        real = place < lengths[:, None]
        row, position = np.nonzero(real)
        target = ((row[:, None] * heads + head) * group.length + position[:, None]).ravel()
        empty = None
        if not real.all():
            empty = torch.from_numpy(np.flatnonzero(np.repeat(~real[:, None, :], heads, axis=1)))
        return torch.from_numpy(source), torch.from_numpy(target), empty

    def masks(
        self, causal: bool, window: int | None, dtype: torch.dtype
    ) -> list[Float[Tensor, "..."] | None]:
        """Return the mask to add to each group's scores [rows, heads, length, length] before softmax: 0 or −∞.

        Args:
            causal: a token sees itself and the tokens before it.
            window: it sees only tokens less than this far away.
            dtype: of the scores.

        Returns:
            A mask for each group, or None where every token sees every other.
        """
        wanted = (causal, window, dtype)
        if wanted not in self._made:
            self._made[wanted] = [self._mask(group, causal, window, dtype) for group in self.groups]
        return self._made[wanted]

    def _mask(self, group: Group, causal: bool, window: int | None, dtype: torch.dtype) -> Tensor | None:
        place = np.arange(group.length)
        apart = place[:, None] - place
        seen = np.ones((1, group.length, group.length), dtype=bool)
        if window is not None:
            seen &= np.abs(apart) < window
        if causal:  # no token sees what follows its row, so padding needs no mask
            seen &= apart >= 0
        else:
            real = place < self.lengths[group.first : group.first + group.rows, None]
            seen = np.broadcast_to(seen & real[:, None, :] | ~real[:, :, None], (group.rows, *seen.shape[1:]))
        if seen.all():
            return None
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(torch.from_numpy(~seen), -torch.inf)
        return mask.to(self.device).unsqueeze(1)

    @cached_property
    def whole(self) -> Group:
        """All rows as one group, padded to the longest and up to a multiple of 8, which suits fused kernels."""
        length = -(-self.max_length // 8) * 8
        return Group(0, len(self), length, slice(0, self.tokens), slice(0, len(self) * length**2))

    @cached_property
    def places(self) -> Int64[Tensor, "tokens"]:
        """The slot of each token in `whole`, [rows · length]."""
        begin = np.arange(len(self)) * self.whole.length - self.offsets[:-1]
        return torch.from_numpy(np.arange(self.tokens) + np.repeat(begin, self.lengths)).to(self.device)

    def whole_mask(self, causal: bool, window: int | None, dtype: torch.dtype) -> Float[Tensor, "..."] | None:
        """Return the mask of `masks` for the group `whole`."""
        wanted = ("whole", causal, window, dtype)
        if wanted not in self._made:
            self._made[wanted] = self._mask(self.whole, causal, window, dtype)
        return self._made[wanted]

    def section(self, first: int, last: int) -> "Layout":
        """Return the layout of rows first … last − 1 alone. They keep their padding and their place in the random stream."""
        before = self.padded[:first]
        return replace(
            self,
            lengths=self.lengths[first:last],
            padded=self.padded[first:last],
            first_row=self.first_row + first,
            first_token=self.first_token + int(self.offsets[first]),
            first_score=self.first_score + int((before**2).sum()),
            _made={},
        )

    def to(self, device: torch.device) -> "Layout":
        """Return the same layout for tokens on another device."""
        return self if device == self.device else replace(self, device=device, _made={})


def length_groups(lengths: Int64[np.ndarray, "rows"]) -> Int64[np.ndarray, "rows"]:
    """Return the length that attention pads each row to, so that all groups together cost least.

    Lengths are rounded up to multiples of 4, 8 or 16, because matrix kernels are compiled for each shape that occurs.
    The best partition is found by dynamic programming over the distinct lengths: c(j) = min_i c(i) + cost of one group i … j.

    Args:
        lengths: tokens of each row, ascending.
    """
    quantum = np.select([lengths <= 16, lengths <= 64], [4, 8], 16)
    distinct, counts = np.unique(-(-lengths // quantum) * quantum, return_counts=True)
    rows = np.concatenate([[0], np.cumsum(counts)])
    least = np.zeros(len(distinct) + 1)
    begin = np.zeros(len(distinct) + 1, dtype=np.int64)
    for j, length in enumerate(distinct, start=1):
        costs = least[:j] + GROUP_COST + (rows[j] - rows[:j]) * length * (length + HEAD_COST)
        begin[j] = np.argmin(costs)
        least[j] = costs[begin[j]]
    padded = np.empty(len(distinct), dtype=np.int64)
    j = len(distinct)
    while j:
        padded[begin[j] : j] = distinct[j - 1]
        j = begin[j]
    return np.repeat(padded, counts)
