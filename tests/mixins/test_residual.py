"""Which modules count as residual branches, in blocks as people write them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning.mixins.flow import own_graph
from lightning_tuning.mixins.residual import residual_branches
from lightning_tuning.modules.networks import build_network


def found(model) -> dict[str, int]:
    """Names and dimensions of the samples."""
    branches, _ = residual_branches(model)
    for name, branch in branches.items():
        assert branch.module is model.get_submodule(name)
    return {name: branch.batch_dim for name, branch in branches.items()}


class BasicBlock(nn.Module):
    """As torchvision writes it: in-place additions and activations, an optional shortcut, one shared ReLU."""

    def __init__(self, inside, outside, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride), nn.BatchNorm2d(outside))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class PreNorm(nn.Module):
    """A transformer block with attention that returns a tuple."""

    def __init__(self, batch_first=True, shared_dropout=False):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
        self.dropout = nn.Dropout(0.1)
        self.shared = shared_dropout

    def forward(self, x, mask=None, need_weights: bool = False):
        y = self.norm1(x)
        if mask is not None:
            raise ValueError("no mask was given")
        attended, _ = self.attn(y, y, y, need_weights=need_weights)
        x = x + (self.dropout(attended) if self.shared else attended)
        hidden = F.gelu(self.fc1(self.norm2(x)))
        if self.shared:
            return x + self.dropout(self.fc2(self.dropout(hidden)))
        return x + self.fc2(hidden)


class Turning(nn.Module):
    """Attention that wants the samples second, in a block that has them first."""

    def __init__(self):
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(8), nn.MultiheadAttention(8, 2), nn.Linear(8, 8)

    def forward(self, x):
        y = self.norm(x).transpose(0, 1)
        x = x + self.attn(y, y, y)[0].transpose(0, 1)
        return x + self.mlp(self.norm(x))


class Turned(nn.Module):
    """The other way round, by a permutation."""

    def __init__(self):
        super().__init__()
        self.gru, self.mlp = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 8)

    def forward(self, x):
        x = x + self.gru(x.permute(1, 0, 2))[0].permute(1, 0, 2)
        return x + self.mlp(x).transpose(-1, -2).transpose(-1, -2)


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.tokens = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4))
        self.channels = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return torch.add(x, self.channels(self.norm2(x)))


class ConvNeXt(nn.Module):
    def __init__(self, drop_path=False):
        super().__init__()
        self.dwconv = nn.Conv2d(4, 4, 7, padding=3, groups=4)
        self.norm = nn.LayerNorm(4)
        self.pwconv1, self.pwconv2 = nn.Linear(4, 16), nn.Linear(16, 4)
        self.gamma = nn.Parameter(torch.ones(4))
        self.drop_path = nn.Identity() if drop_path else None

    def forward(self, x):
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(self.norm(y))))
        y = y.permute(0, 3, 1, 2)
        return x + (y if self.drop_path is None else self.drop_path(y))


class Parallel(nn.Module):
    """Two branches of one norm, and one module for both of the drops."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.a, self.b, self.drop = nn.Linear(8, 8), nn.Linear(8, 8), nn.Identity()

    def forward(self, x):
        y = self.norm(x)
        return x + self.drop(self.a(y)) + self.drop(self.b(y))


class Loop(nn.Module):
    """Additions in the model itself, over a list of layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.positions = nn.Parameter(torch.zeros(8))

    def forward(self, x):
        self.last_input = x
        x = self.stem(x) + self.positions
        for layer in self.layers:
            x = x.add_(layer(F.relu(x)) / 2)
        return x


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = x + self.lstm(x)[0]
        return x + self.out(x)


def layer(cls, **kwargs):
    return cls(8, 2, 16, **kwargs)


CASES = {
    "basic": (BasicBlock(4, 4), {"bn2": 0}),
    "basic_projected": (BasicBlock(4, 8, 2), {"bn2": 0}),
    "pre_norm": (PreNorm(), {"attn": 0, "fc2": 0}),
    # Attention tells that the samples come second, for the other branch as well.
    "sequence_first": (PreNorm(batch_first=False), {"attn": 1, "fc2": 1}),
    "turning": (Turning(), {"attn": 1, "mlp": 0}),
    # Dropping the output of a dropout that is also called within the branch would drop there too.
    "shared_dropout": (PreNorm(shared_dropout=True), {"attn": 0, "fc2": 0}),
    "mixer": (Mixer(), {"tokens": 0, "channels": 0}),
    "convnext": (ConvNeXt(), {"pwconv2": 0}),
    "convnext_drop_path": (ConvNeXt(drop_path=True), {"drop_path": 0}),
    "parallel": (Parallel(), {"drop": 0}),
    "loop": (Loop(), {"layers.0": 0, "layers.1": 0, "layers.2": 0}),
    "recurrent": (Recurrent(), {"lstm": 1, "out": 1}),
    "encoder": (layer(nn.TransformerEncoderLayer, batch_first=True), {"dropout1": 0, "dropout2": 0}),
    "encoder_sequence_first": (layer(nn.TransformerEncoderLayer), {"dropout1": 1, "dropout2": 1}),
    "decoder": (layer(nn.TransformerDecoderLayer), {"dropout1": 1, "dropout2": 1, "dropout3": 1}),
    "resnet18": (build_network("resnet18"), {f"{i}.bn2": 0 for i in range(3, 11)}),
    "wrn_16_2": (build_network("wrn_16_2"), {f"{i}.conv2": 0 for i in range(1, 7)}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_branches_that_there_are(case):
    model, expected = CASES[case]
    assert found(model) == expected
    assert list(found(nn.Sequential(nn.Linear(2, 2), model))) == [f"1.{name}" for name in expected]
    assert residual_branches(model)[1] == []


class Embeddings(nn.Module):
    """Sums of equals, of constants and of sizes are no residual branches."""

    def __init__(self):
        super().__init__()
        self.word, self.kind = nn.Embedding(9, 8), nn.Embedding(2, 8)
        self.out = nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.zeros(8))

    def forward(self, x, kinds):
        y = self.word(x) + self.kind(kinds) + self.kind(torch.zeros(3, dtype=torch.long))
        return self.out(y.view(x.shape[0] + y.size(1), -1)) + self.bias


class Merge(nn.Module):
    """Of two inputs none is the other's way around."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x, skip):
        return self.conv(x) + skip


class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.a(x) + self.b(x)


class Branching(nn.Module):
    """Cannot be traced."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.a(x) if x.sum() > 0 else x


@pytest.mark.parametrize("model", [Embeddings(), Merge(), Twins(), build_network("mlp"), build_network("cnn")])
def test_none_where_there_is_none(model):
    assert own_graph(model) is not None
    assert residual_branches(model) == ({}, [])


def test_none_where_it_cannot_be_traced():
    assert own_graph(Branching()) is None
    assert residual_branches(Branching()) == ({}, [])


class NoEnd(nn.Module):
    """Branches without a module of their own at the end."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = x + torch.tanh(self.a(x))
        both = self.b(x)
        x = (x + both) * both.mean()
        return x + self.c(x).reshape(-1, 8)


def test_a_branch_that_cannot_be_dropped_at_a_module_is_reported():
    assert residual_branches(nn.Sequential(NoEnd())) == ({}, ["0"])
    assert residual_branches(NoEnd()) == ({}, ["NoEnd"])


def test_tracing_leaves_noown_graph():
    model = Loop()
    before, state = set(vars(model)), torch.get_rng_state()
    residual_branches(model)
    assert set(vars(model)) == before
    assert not hasattr(model, "last_input")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(not m._forward_hooks for m in model.modules())


def test_what_is_held_in_evaluation_mode_is_left_out():
    model = nn.ModuleDict({"student": BasicBlock(4, 4), "teacher": BasicBlock(4, 4).eval()})
    assert list(found(model)) == ["student.bn2"]
    assert list(found(model.eval())) == ["student.bn2", "teacher.bn2"]


def test_what_stands_second_or_first_and_is_counted_from_the_end_is_open():
    branches, missed = residual_branches(Turned())
    assert {name: branch.batch_dim for name, branch in branches.items()} == {"gru": 0}
    assert missed == ["Turned"]


def test_a_block_that_is_used_twice_has_one_branch():
    block = BasicBlock(4, 4)
    assert list(found(nn.Sequential(block, block))) == ["0.bn2"]
    blocks = [ConvNeXt(drop_path=True) for _ in range(2)]
    blocks[1].drop_path = blocks[0].drop_path
    assert list(found(nn.Sequential(*blocks))) == ["0.drop_path"]
