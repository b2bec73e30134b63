import pytest
from torch import nn

from lightning_tuning import EMATeacherMixin
from lightning_tuning.mixins.blocks import blocks_of
from lightning_tuning.modules.networks import build_network
from tests.mixins.tiny import Tiny, linear


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.act, self.outer = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(9, 4), nn.LayerNorm(4)
        self.layers = nn.ModuleList([Block(), Block()])
        self.scales = nn.ModuleDict({"a": nn.Linear(4, 4)})
        self.head = nn.Linear(4, 3)


class Taught(EMATeacherMixin, Tiny):
    pass


@pytest.mark.parametrize(
    ("network", "names"),
    [
        (linear(), []),
        (nn.Sequential(nn.Flatten(), linear()), []),
        (build_network("mlp", image_size=8), ["1", "4", "7"]),
        (build_network("resnet18"), ["0", *(str(n) for n in range(3, 11)), "14"]),
        (Text(), ["embedding", "layers.0", "layers.1", "scales.a", "head"]),
        (nn.Sequential(nn.Sequential(linear(), nn.Tanh()), nn.Sequential(Block())), ["0.0", "1.0"]),
        (nn.Sequential(Block()), ["0.inner", "0.outer"]),
    ],
    ids=["linear", "one layer", "mlp", "resnet18", "text", "nested", "one block"],
)
def test_blocks(network, names):
    host = Tiny(network)
    blocks = blocks_of(host)
    assert list(blocks) == [f"network.{name}" for name in names]
    assert all(block is host.get_submodule(name) for name, block in blocks.items())


def test_children_of_the_host_itself():
    host = Tiny(linear())
    host.head = linear()
    assert list(blocks_of(host)) == ["network", "head"]


def test_a_teacher_is_no_block():
    host = Taught(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))
    host.configure_model()
    assert list(blocks_of(host)) == ["network.0", "network.2"]
