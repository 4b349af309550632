"""Sequences → batches without padding: all tokens of a batch end to end, with the boundaries beside them.

    rows   [■■■] [■■■■■] [■■]                 tokens   ■■ ■■■ ■■■■■        [1, tokens], shortest row first
                                     ─►     cu_seqlens  0  2   5     10     boundaries, read by attention and pooling only

Linear layers, norms and activations then compute real tokens only. This module also says which rows make a batch, and pads rows.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor, nn

from rankwise.engine.dropout import Key
from rankwise.models.families import first_position
from rankwise.tasks.labels import IGNORED

GROUP_COST = 8000
HEAD_COST = 64
"""Cost of attention in one head, in scores: `length · (length + HEAD_COST)` a row, and `GROUP_COST` a group.

They are fitted to measured times of the grouped products. A factor of 3 in either costs a few percent of attention's time."""


@runtime_checkable
class Rows(Protocol):
    """Token ids of many rows end to end, as `Encoded` keeps them: row i is input_ids[offsets[i]:offsets[i + 1]]."""

    @property
    def input_ids(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...
    @property
    def token_type_ids(self) -> np.ndarray | None: ...
    @property
    def labels(self) -> np.ndarray | None: ...
    @property
    def token_labels(self) -> np.ndarray | None: ...


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


@dataclass(frozen=True)
class LabelledTokens:
    """Which tokens of a batch have a label, where labels are of tokens. Logits and labels are in this order.

    Attributes:
        places: of these tokens in the packed tokens, or in padded rows laid end to end.
        rows: for each token, the place of its row in the batch's `rows`.
    """

    places: Int64[Tensor, "labels"]
    rows: Int64[Tensor, "labels"]

    def to(self, device: torch.device) -> "LabelledTokens":
        """Return the same on another device."""
        return LabelledTokens(self.places.to(device), self.rows.to(device))


@dataclass(frozen=True)
class PackedBatch:
    """Rows of a batch as one sequence of tokens, and their boundaries.

    Attributes:
        input_ids, position_ids: of each token; positions start anew in every row, at the model's first position.
        token_type_ids: of each token, where the tokenizer makes them.
        layout: the boundaries.
        order: place of each row in packed order, in the order of `rows`.
        by_length: the inverse of `order`: which of the rows is at each place.
        rows: numbers of the rows; labels and logits are in this order.
        labels: of the rows, in the form of their objective (see `tasks.objectives`), or of `labelled`.
        labelled: the tokens that have a label; None where rows have.
    """

    input_ids: Int64[Tensor, "1 tokens"]
    position_ids: Int64[Tensor, "1 tokens"]
    token_type_ids: Int64[Tensor, "1 tokens"] | None
    layout: Layout
    order: Int64[Tensor, "rows"]
    by_length: Int64[np.ndarray, "rows"]
    rows: Int64[np.ndarray, "rows"]
    labels: Int64[Tensor, "labels"] | Float[Tensor, "rows"] | Float[Tensor, "rows outputs"] | None
    labelled: LabelledTokens | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Tokens of all rows, without the filler."""
        return self.layout.tokens

    @property
    def cu_seqlens(self) -> Int32[Tensor, "boundaries"]:
        """The first token of each row, and the end of the last row."""
        return self.layout.cu_seqlens

    def fill(self) -> "PackedBatch":
        """Return the same batch with unused tokens behind the last row, so that fewer numbers of tokens occur.

        A CPU's matrix kernels are compiled for each number of tokens, which takes longer than running them once. With filler,
        at most 16 numbers occur between n and 2n. About 3 % more tokens are computed.
        """
        filler = filling(self.tokens)
        ids, positions, types = (
            None if x is None else torch.cat([x, x[:, :1].expand(1, filler)], dim=1)
            for x in (self.input_ids, self.position_ids, self.token_type_ids)
        )
        assert ids is not None
        assert positions is not None
        layout = replace(self.layout, filler=filler, _made={})
        return replace(self, input_ids=ids, position_ids=positions, token_type_ids=types, layout=layout)

    def to(self, device: torch.device | str) -> "PackedBatch":
        """Return the same batch on another device."""
        device = torch.device(device)
        moved = {
            name: None if (value := getattr(self, name)) is None else value.to(device)
            for name in ("input_ids", "position_ids", "token_type_ids", "order", "labels")
        }
        labelled = None if self.labelled is None else self.labelled.to(device)
        return replace(self, layout=self.layout.to(device), labelled=labelled, **moved)

    def divide(self, count: int) -> list["PackedBatch"]:
        """Return `count` micro-batches with about equal tokens, shortest rows first; fewer where there are fewer rows.

        Dropout's masks are those of the whole batch. So the micro-batches' gradients of their summed losses add up to the whole
        batch's.
        """
        return [self] if count <= 1 else self._sections(equal_sections(self.layout.lengths, count))

    def split(self, most: float, costs: np.ndarray | None = None) -> list["PackedBatch"]:
        """Return micro-batches, as `divide` makes them, that each cost at most `most` or have a single row.

        Args:
            most: cost of a micro-batch.
            costs: of each row, in packed order. Default: its tokens.
        """
        upto = np.concatenate([[0], np.cumsum(self.layout.lengths if costs is None else costs)])
        edges = [0]
        while edges[-1] < len(self):
            last = int(np.searchsorted(upto, upto[edges[-1]] + most, side="right")) - 1
            edges.append(max(last, edges[-1] + 1))
        return self._sections(edges)

    def _sections(self, edges: list[int]) -> list["PackedBatch"]:
        return [self._section(first, last, self.by_length[first:last]) for first, last in pairwise(edges)]

    def _section(self, first: int, last: int, which: Int64[np.ndarray, "some"]) -> "PackedBatch":
        tokens = slice(int(self.layout.offsets[first]), int(self.layout.offsets[last]))
        chosen, labels, labelled = torch.from_numpy(which).to(self.order.device), self.labels, self.labelled
        if labelled is not None and labels is not None:
            here = (labelled.places >= tokens.start) & (labelled.places < tokens.stop)
            labels, places = labels[here], labelled.places[here] - tokens.start
            labelled = LabelledTokens(places, self.order[labelled.rows[here]] - first)
        elif labels is not None:
            labels = labels[chosen]
        return PackedBatch(
            input_ids=self.input_ids[:, tokens],
            position_ids=self.position_ids[:, tokens],
            token_type_ids=None if self.token_type_ids is None else self.token_type_ids[:, tokens],
            layout=self.layout.section(first, last),
            order=torch.arange(last - first, device=self.order.device),
            by_length=np.arange(last - first),
            rows=self.rows[which],
            labels=labels,
            labelled=labelled,
        )


def equal_sections(lengths: Int64[np.ndarray, "rows"], count: int) -> list[int]:
    """Return where to cut rows, in their order, into `count` sections with about equal tokens: the first row of each, and the end.

    There are fewer sections where there are fewer rows.
    """
    ends = np.cumsum(lengths)
    wanted = ends[-1] * np.arange(1, count) / count
    nearest = np.abs(ends[:, None] - wanted).argmin(axis=0) + 1
    return np.unique(np.concatenate([[0], nearest, [len(lengths)]])).tolist()


def filling(tokens: int) -> int:
    """Return how many unused tokens `PackedBatch.fill` adds to so many."""
    return -tokens % max(8, 1 << max(0, (tokens // 16).bit_length() - 1))


def pack(
    encoded: Rows, rows: Int[np.ndarray, "rows"], *, model: nn.Module | None = None, key: Key | None = None
) -> PackedBatch:
    """Pack rows into one sequence of tokens.

    Args:
        encoded: token ids of all rows.
        rows: numbers of the rows wanted, at least one.
        model: for its own way to count positions; without it positions start at 0.
        key: names dropout's random stream, e.g. (seed, step). Default: drawn from torch's own generator.
    """
    rows = np.asarray(rows, dtype=np.int64)
    lengths = encoded.offsets[rows + 1] - encoded.offsets[rows]
    by_length = np.argsort(lengths, kind="stable")
    order = np.empty_like(by_length)
    order[by_length] = np.arange(len(rows))
    key = key if key is not None else (int(torch.randint(2**62, ())),)
    lengths = lengths[by_length]
    layout = Layout(lengths, length_groups(lengths), torch.device("cpu"), key)

    place = np.arange(layout.tokens) - np.repeat(layout.offsets[:-1], lengths)
    token = np.repeat(encoded.offsets[rows[by_length]], lengths) + place
    ids = encoded.input_ids[token]
    start = first_position(model) if model is not None else 0
    types, labels = encoded.token_type_ids, None if encoded.labels is None else encoded.labels[rows]
    labelled = None
    if encoded.token_labels is not None:
        labels = encoded.token_labels[token]
        places = np.flatnonzero(labels != IGNORED)
        labels, of_token = labels[places], np.repeat(by_length, lengths)
        labelled = LabelledTokens(_long(places), _long(of_token[places]))
    return PackedBatch(
        input_ids=_long(ids)[None],
        position_ids=_long(_positions(ids, layout, start) if start else place)[None],
        token_type_ids=None if types is None else _long(types[token])[None],
        layout=layout,
        order=_long(order),
        by_length=by_length,
        rows=rows,
        labels=None if labels is None else _as_stored(labels),
        labelled=labelled,
    )


def _positions(ids: Int[np.ndarray, "tokens"], layout: Layout, start: int) -> Int64[np.ndarray, "tokens"]:
    """Count positions from `start` in every row, as RoBERTa does: a padding token within a text stays at the padding index, `start` − 1."""
    real = ids != start - 1
    count = np.concatenate([[0], np.cumsum(real)])
    within = count[1:] - np.repeat(count[layout.offsets[:-1]], layout.lengths)
    return np.where(real, within, 0) + start - 1


def pad(
    encoded: Rows,
    rows: Int[np.ndarray, "rows"],
    pad_id: int,
    padding: Literal["longest"] | int = "longest",
) -> dict[str, Tensor]:
    """Pad rows to the form that every Transformers model takes.

    Args:
        encoded: token ids of all rows.
        rows: numbers of the rows wanted.
        pad_id: fills `input_ids` behind a row's end.
        padding: to the longest of these rows, or to this many tokens.

    Returns:
        `input_ids`, `attention_mask` and where there are any `token_type_ids`, int64 [rows, length]; and `labels` of rows, or
        of tokens [rows, length] with -100 where there is none.

    Raises:
        ValueError: a row is longer than the length asked for.
    """
    rows = np.asarray(rows, dtype=np.int64)
    lengths = encoded.offsets[rows + 1] - encoded.offsets[rows]
    length = int(lengths.max()) if padding == "longest" else int(padding)
    if lengths.max() > length:
        raise ValueError(f"A row of {lengths.max()} tokens doesn't fit in {length}.")
    place = np.arange(length)
    real = place < lengths[:, None]
    token = np.where(real, encoded.offsets[rows][:, None] + place, 0)
    batch = {"input_ids": np.where(real, encoded.input_ids[token], pad_id), "attention_mask": real}
    if encoded.token_type_ids is not None:
        batch["token_type_ids"] = np.where(real, encoded.token_type_ids[token], 0)
    inputs = {name: _long(values) for name, values in batch.items()}
    if encoded.token_labels is not None:
        return inputs | {"labels": _long(np.where(real, encoded.token_labels[token], IGNORED))}
    return inputs if encoded.labels is None else inputs | {"labels": _as_stored(encoded.labels[rows])}


def _long(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))


def _as_stored(labels: np.ndarray) -> Tensor:
    """Return labels as a tensor: class ids int64, numbers and sets of labels float32."""
    return torch.from_numpy(labels) if labels.dtype.kind == "f" else _long(labels)


def batch_order(
    lengths: Int64[np.ndarray, "rows"], batch_size: int, *, seed: int, group_by_length: bool = False
) -> list[Int64[np.ndarray, "batch"]]:
    """Return the batches of one epoch: every row once, in random order.

    Args:
        lengths: tokens of each row.
        batch_size: rows a batch; the last may have fewer.
        seed: of this epoch's order.
        group_by_length: put rows of similar length into a batch, as padded training wants. Blocks of 50 batches are sorted by
            length, as Transformers' Trainer does, and the batches are shuffled.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    if group_by_length:
        size = 50 * batch_size
        blocks = [order[i : i + size] for i in range(0, len(order), size)]
        order = np.concatenate([b[np.argsort(-lengths[b], kind="stable")] for b in blocks] or [order])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))] if group_by_length else batches


def token_batches(
    lengths: Int64[np.ndarray, "rows"], max_tokens: int, rows: int | None = None
) -> list[Int64[np.ndarray, "batch"]]:
    """Return every row once, sorted by length, in batches of at most `max_tokens` tokens or a single row, for evaluation.

    Padding counts, so that packed and padded batches take the same memory. Where `rows` is given, batches have so many rows instead.
    """
    order = np.argsort(lengths, kind="stable")
    if rows is not None:
        return [order[first : first + rows] for first in range(0, len(order), rows)]
    ascending = lengths[order]
    batches, first = [], 0
    while first < len(order):
        filled = ascending[first:] * np.arange(1, len(order) - first + 1)
        rows = max(int(np.searchsorted(filled, max_tokens, side="right")), 1)
        batches.append(order[first : first + rows])
        first += rows
    return batches
