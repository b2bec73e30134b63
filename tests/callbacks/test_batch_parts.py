"""How a batch is divided, and what is refused by name."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from lightning_tuning.callbacks._batch_parts import joined, parts_of, units_of
from lightning_tuning.errors import InvalidValueError

X = torch.arange(10.0).reshape(5, 2)
IDS = torch.tensor([3, 1, 4, 1, 5])
Pair = namedtuple("Pair", "x y")


@dataclass
class Sample:
    x: torch.Tensor
    name: str


def test_sizes_differ_by_one_and_shares_add_up():
    for rows in range(1, 20):
        for count in range(1, 25):
            parts = parts_of(torch.arange(rows), count)
            sizes = [part.rows for part in parts]
            assert len(parts) == min(rows, count)
            assert max(sizes) - min(sizes) <= 1
            assert sizes[0] == max(sizes)
            assert [part.share for part in parts] == [size / rows for size in sizes]
            assert torch.equal(torch.cat([part.batch for part in parts]), torch.arange(rows))


def test_an_empty_batch_is_one_part():
    for batch in (X[:0], {"labeled": X[:0], "unlabeled": X[:0]}):
        assert [part.batch for part in parts_of(batch, 2)] == [batch]


def test_containers_keep_their_kind():
    batch = OrderedDict(
        pair=Pair(X, IDS),
        items=[X, (IDS, X.numpy())],
        names=["a", "b", "c", "d", "e"],
        one=torch.tensor(7.0),
        rate=0.5,
        nothing=None,
        data=Sample(X, "all"),
        user=UserDict(x=X),
    )
    first, second = (part.batch for part in parts_of(batch, 2))
    assert [type(first[key]) for key in batch] == [type(value) for value in batch.values()]
    assert type(first) is OrderedDict
    assert torch.equal(first["pair"].x, X[:3])
    assert torch.equal(second["pair"].y, IDS[3:])
    assert torch.equal(second["items"][1][0], IDS[3:])
    np.testing.assert_array_equal(second["items"][1][1], X[3:].numpy())
    assert type(first["items"][1]) is tuple
    assert (first["names"], second["names"]) == (["a", "b", "c"], ["d", "e"])
    assert (first["one"].item(), second["rate"], first["nothing"]) == (7.0, 0.5, None)
    assert torch.equal(second["data"].x, X[3:])
    assert first["data"].name == "all"
    assert torch.equal(second["user"]["x"], X[3:])


def test_streams_are_divided_alike():
    batch = {
        "labeled": (torch.arange(6), torch.arange(6)),
        "unlabeled": {"weak": torch.arange(15), "strong": torch.arange(15)},
    }
    assert units_of(batch) == 3
    parts = parts_of(batch, 2)
    assert [len(part.batch["labeled"][0]) for part in parts] == [4, 2]
    assert [len(part.batch["unlabeled"]["strong"]) for part in parts] == [10, 5]
    assert [(part.share, part.rows) for part in parts] == [(2 / 3, 4), (1 / 3, 2)]
    assert len(parts_of(batch, 8)) == 3


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, IDS[:4]), r"batch\[0\] has 5 rows and batch\[1\] has 4"),
        ({"x": X, "boxes": [[1, 2], [3]]}, r"batch\['x'\] has 5 rows and batch\['boxes'\]\[0\] has 2"),
        ((X, object()), r"batch\[1\], a object"),
        ((X, {"y": pack_sequence([X])}), r"batch\[1\]\['y'\], a PackedSequence"),
        ((X, X.to_sparse()), r"batch\[1\], a Tensor"),
        (Sample(object(), "a"), r"batch\.x, a object"),
        ({"labeled": X, "unlabeled": (X, IDS[:2])}, r"batch\['unlabeled'\]\[0\] has 5 rows"),
        ((torch.tensor(1.0), {}), "batch: it holds no tensor with a row for each sample"),
    ],
)
def test_what_cannot_be_divided_is_named(batch, message):
    with pytest.raises(InvalidValueError, match=message):
        parts_of(batch, 2)


def test_what_the_parts_return_is_joined():
    parts = [
        {
            "logits": X[:3],
            "mean": torch.tensor(1.0),
            "n": torch.tensor(3),
            "text": "a",
            "in": {"x": IDS[:3]},
            "only": 1,
        },
        {"logits": X[3:], "mean": torch.tensor(6.0), "n": torch.tensor(2), "text": "b", "in": {"x": IDS[3:]}},
    ]
    whole = joined(parts, [0.6, 0.4], [3, 2])
    assert torch.equal(whole["logits"], X)
    assert torch.equal(whole["in"]["x"], IDS)
    assert whole["mean"].item() == pytest.approx(3.0)
    assert (whole["n"].item(), whole["text"], "only" in whole) == (2, "b", False)
    weight = torch.zeros(4, 2)
    assert joined([weight, weight + 1], [0.6, 0.4], [3, 2]).tolist() == (weight + 1).tolist()  # no row a sample
