"""Sequences → batches without padding: all tokens of a batch end to end, with the boundaries beside them.

    rows   [■■■] [■■■■■] [■■]                 tokens   ■■ ■■■ ■■■■■        [1, tokens], shortest row first
                                     ─►     cu_seqlens  0  2   5     10     boundaries, read by attention and pooling only

Linear layers, norms and activations then compute real tokens only. This module also pads rows, for models that can't be packed.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor, nn

from rankwise.engine.batches import equal_sections
from rankwise.engine.dropout import Key
from rankwise.engine.layout import Layout, length_groups
from rankwise.models.families import first_position
from rankwise.tasks.encoding import Encoded
from rankwise.tasks.labels import IGNORED


@dataclass(frozen=True)
class LabelledTokens:
    """Which tokens of a batch have a label, where labels are of tokens. Logits and labels are in this order.

    Attributes:
        places: of these tokens in the packed tokens, or in padded rows laid end to end.
        rows: for each token, the place of its row in the batch's `rows`.
        before: of packed rows, in their order: how many of these tokens come before each row, and how many there are.
    """

    places: Int64[Tensor, "labels"]
    rows: Int64[Tensor, "labels"]
    before: Int64[np.ndarray, "boundaries"] | None = None

    def to(self, device: torch.device) -> "LabelledTokens":
        """Return the same on another device."""
        return replace(self, places=self.places.to(device), rows=self.rows.to(device))


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
            assert labelled.before is not None
            before = labelled.before[first : last + 1]
            here = slice(int(before[0]), int(before[-1]))
            labels, places = labels[here], labelled.places[here] - tokens.start
            rows = self.order[labelled.rows[here]] - first
            labelled = LabelledTokens(places, rows, before - before[0])
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


def filling(tokens: int) -> int:
    """Return how many unused tokens `PackedBatch.fill` adds to so many."""
    return -tokens % max(8, 1 << max(0, (tokens // 16).bit_length() - 1))


def pack(
    encoded: Encoded, rows: Int[np.ndarray, "rows"], *, model: nn.Module | None = None, key: Key | None = None
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
        before = np.searchsorted(places, layout.offsets)
        labelled = LabelledTokens(_long(places), _long(of_token[places]), before)
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
    encoded: Encoded,
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
