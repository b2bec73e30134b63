import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning import EMATeacherMixin, FixMatchMixin, ManifoldMixupMixin, RDropMixin, SAMMixin
from lightning_tuning.errors import InvalidValueError, NoEffectError
from lightning_tuning.functional import sample_beta
from lightning_tuning.mixins.regularization import manifold_mixup
from lightning_tuning.modules import Classifier
from tests.mixins.tiny import Tiny, batches, convolution, deep, fit, linear, smooth, streams
from tests.numerics import array, cross_entropy, one_hot

ALPHA = {"manifold_mixup_alpha": 2.0}


class Net(ManifoldMixupMixin, Tiny):
    pass


class Stacked(SAMMixin, EMATeacherMixin, FixMatchMixin, ManifoldMixupMixin, RDropMixin, Tiny):
    pass


def drawn(size, layers):
    """What the step is about to draw, without drawing it."""
    state = torch.get_rng_state()
    share, partner = sample_beta(2.0), torch.randperm(size)
    layer = int(torch.randint(layers, ()))
    torch.set_rng_state(state)
    return share, partner.numpy(), layer


def mixed(values, share, partner):
    return share * values + (1 - share) * values[partner]


@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("layer", ["input", "network.0", "network.1"])
def test_one_layer_of_the_network_is_mixed(layer, size):
    net = Net(smooth().double(), manifold_mixup_layers=layer, **ALPHA)
    x, ids = batches(1, size, dtype=torch.float64)[0]
    share, partner, _ = drawn(size, 1)
    assert (partner != np.arange(size)).any()
    loss = net.training_step((x, ids), 0)
    first, last = net.network[0], net.network[2]

    def at(name, values):
        return mixed(values, share, partner) if name == layer else values

    hidden = at("network.0", at("input", array(x)) @ array(first.weight).T + array(first.bias))
    logits = at("network.1", np.tanh(hidden)) @ array(last.weight).T + array(last.bias)
    target = mixed(one_hot(ids.numpy(), 3), share, partner)
    np.testing.assert_allclose(array(net.logits[0]), logits, atol=1e-12)
    np.testing.assert_allclose(array(net.targets[0]), target, atol=1e-6)
    assert loss.item() == pytest.approx(cross_entropy(logits, target), rel=1e-6)
    if layer != "input":
        assert net.batches[0][0] is x


def test_gradient_through_the_mixed_layer():
    """Both the sample and its partner get their share."""
    net = Net(smooth().double(), manifold_mixup_layers="network.0", **ALPHA)
    x, ids = batches(1, dtype=torch.float64)[0]
    share, partner, _ = drawn(8, 1)
    net.training_step((x, ids), 0).backward()
    copied = copy.deepcopy(net.network)
    copied.zero_grad()
    hidden = copied[0](x)
    matrix = share * torch.eye(8, dtype=torch.float64) + (1 - share) * torch.eye(8, dtype=torch.float64)[partner]
    target = matrix @ F.one_hot(ids, 3).double()
    loss = -(target * copied[2](torch.tanh(matrix @ hidden)).log_softmax(1)).sum(1).mean()
    loss.backward()
    for p, expected in zip(net.network.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected.grad, rtol=1e-6, atol=1e-9)


def test_each_layer_is_drawn_equally_often(monkeypatch):
    names = []

    class Noting(manifold_mixup._MixOutput):
        def __init__(self, name, *args):
            super().__init__(name, *args)
            names.append(name)

    monkeypatch.setattr(manifold_mixup, "_MixOutput", Noting)
    net, batch = Net(smooth(), manifold_mixup_layers=r"input|network\.[012]", **ALPHA), batches(1)[0]
    torch.manual_seed(0)
    for step in range(1000):
        net.training_step(batch, step)
    counts = np.array([names.count(f"network.{layer}") for layer in range(3)])
    counts = np.append(counts, sum(x is not batch[0] for x, _ in net.batches))  # the input
    assert counts.sum() == 1000
    assert ((counts - 250) ** 2 / 250).sum() < 3 + 5 * np.sqrt(6)


@pytest.mark.parametrize(
    ("network", "names"),
    [
        (linear(), ["input"]),
        (deep(), ["input", "network.0"]),
        (convolution(), ["input", "network.0"]),
        (Classifier(network="resnet18").network, ["input", *(f"network.{n}" for n in (0, 3, 4, 5, 6))]),
    ],
    ids=["linear", "deep", "convolution", "resnet18"],
)
def test_by_default_the_input_and_the_first_half_of_the_blocks(network, names):
    assert list(ManifoldMixupMixin._manifold_layers(Net(network, **ALPHA))) == names


def test_an_expression_matches_whole_names():
    net = Net(nn.Sequential(*(linear() for _ in range(12))), manifold_mixup_layers=r"network\.1", **ALPHA)
    assert list(ManifoldMixupMixin._manifold_layers(net)) == ["network.1"]


def test_no_layer_of_that_name_stops_fit_before_the_first_step():
    net = Net(smooth(), manifold_mixup_layers="blocks.*", **ALPHA)
    with pytest.raises(NoEffectError) as caught:
        fit(net, batches(1))
    assert str(caught.value) == (
        "ManifoldMixupMixin is on but can change nothing: in Tiny, manifold_mixup_layers='blocks.*' matches the whole "
        "name of none of its layers: 'input', 'network', 'network.0', 'network.1', 'network.2'. Mend that, or switch "
        "it off: manifold_mixup_alpha=0.0."
    )
    assert net.batches == []


def test_both_halves_of_a_doubled_batch_are_mixed_in_themselves():
    class Halves(Tiny):
        def forward(self, x):
            return super().forward(torch.cat([x[:8], 1.5 * x[8:]]))

    cls = type("HalvesNet", (ManifoldMixupMixin, RDropMixin, Halves), {})
    net = cls(smooth(), manifold_mixup_layers="network.0", rdrop_weight=1.0, **ALPHA)
    x, ids = batches(1)[0]
    share, partner, _ = drawn(8, 1)
    net.training_step((x, ids), 0)
    assert net.logits[0].shape == (16, 3)
    for half, factor in zip(net.logits[0].chunk(2), (1, 1.5), strict=True):
        hidden = torch.tensor(mixed(array(net.network[0](factor * x)), share, partner)).float()
        np.testing.assert_allclose(array(half), array(net.network[2](torch.tanh(hidden))), atol=1e-5)


class Shared(nn.Module):
    """Uses one layer three times."""

    def __init__(self):
        super().__init__()
        self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.shared(self.shared(self.shared(x))))


def test_a_layer_that_runs_several_times_is_mixed_once():
    net = Net(Shared(), manifold_mixup_layers="network.shared", **ALPHA)
    x, ids = batches(1)[0]
    share, partner, _ = drawn(8, 1)
    net.training_step((x, ids), 0)
    shared = net.network.shared
    once = torch.tensor(mixed(array(shared(x)), share, partner)).float()
    np.testing.assert_allclose(array(net.logits[0]), array(net.network.head(shared(shared(once)))), atol=1e-5)


class Twice(Tiny):
    def training_step(self, batch, batch_idx):
        x, target = batch
        return self.compute_loss(self(x), target) + self.compute_loss(self(2 * x), target)


def test_each_forward_of_the_step_is_mixed_alike():
    net = type("TwiceNet", (ManifoldMixupMixin, Twice), {})(smooth(), manifold_mixup_layers="network.0", **ALPHA)
    x, ids = batches(1)[0]
    share, partner, _ = drawn(8, 1)
    net.training_step((x, ids), 0)
    for logits, factor in zip(net.logits, (1, 2), strict=True):
        hidden = torch.tensor(mixed(array(net.network[0](factor * x)), share, partner)).float()
        np.testing.assert_allclose(array(logits), array(net.network[2](torch.tanh(hidden))), atol=1e-5)


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        tokens = x["tokens"] if isinstance(x, dict) else x
        return self.head(torch.tanh(self.hidden(self.embedding(tokens).mean(1))))


class TextHost(Tiny):
    def forward(self, x):
        return self.network(x)


@pytest.mark.parametrize("as_dict", [False, True])
def test_token_ids_are_mixed_behind_their_embedding(as_dict):
    net = type("TextNet", (ManifoldMixupMixin, TextHost), {})(Text(), **ALPHA)
    tokens, ids = torch.randint(9, (8, 5)), torch.randint(3, (8,))
    for step in range(6):  # the input is among the layers, but never drawn
        share, partner, _ = drawn(8, 1)
        net.training_step(({"tokens": tokens, "mask": torch.ones(8, 5)} if as_dict else tokens, ids), step)
        embedded = torch.tensor(mixed(array(net.network.embedding(tokens)), share, partner)).float()
        expected = net.network.head(torch.tanh(net.network.hidden(embedded.mean(1))))
        np.testing.assert_allclose(array(net.logits[-1]), array(expected), atol=1e-5)
        assert net.targets[-1].is_floating_point()


def test_integers_without_a_layer_behind_them():
    net = Net(linear(), **ALPHA)
    with pytest.raises(InvalidValueError) as caught:
        net.training_step((torch.zeros(8, 4).long(), torch.zeros(8).long()), 0)
    assert str(caught.value) == (
        "ManifoldMixupMixin found no layer to mix, and inputs that are integers cannot be mixed themselves. Name "
        "layers of Tiny that return floats in manifold_mixup_layers."
    )


def test_the_teacher_and_the_unlabelled_passes_are_not_mixed():
    torch.manual_seed(0)
    net = Stacked(
        smooth(), manifold_mixup_layers=r".*\.0", ema_teacher_decay=0.5, fixmatch_threshold=0.0, rdrop_weight=0, **ALPHA
    )
    net.configure_model()
    assert list(ManifoldMixupMixin._manifold_layers(net)) == ["network.0"]
    batch = streams(1)[0]
    (x, _), unlabeled = batch["labeled"], batch["unlabeled"]
    share, partner, _ = drawn(4, 1)
    loss = net.training_step(batch, 0).item()
    hidden = torch.tensor(mixed(array(net.network[0](x)), share, partner)).float()
    labeled = F.cross_entropy(net.network[2](torch.tanh(hidden)), net.targets[0])
    strong = F.cross_entropy(net.network(unlabeled["strong"]), net.network(unlabeled["weak"]).argmax(1))
    assert loss == pytest.approx((labeled + strong).item(), rel=1e-5)


def test_sams_second_pass_mixes_the_same_layer_and_pairs():
    class Noting(Tiny):
        def compute_loss(self, logits, target):
            noted.append((self.network[1].seen, target))
            return super().compute_loss(logits, target)

    class Note(nn.Module):
        def forward(self, x):
            self.seen = x.detach() - net.network[0].bias.detach()
            return x

    noted = []
    network = nn.Sequential(linear(), Note(), nn.Tanh(), nn.Linear(3, 3))
    cls = type("SamNet", (SAMMixin, ManifoldMixupMixin, Noting), {})
    net = cls(network, lr=0.0, sam_rho=1e-6, manifold_mixup_layers=r"input|network\.0", **ALPHA)
    fit(net, batches(10))
    assert len(noted) == 20
    for (hidden, target), (hidden_again, target_again) in zip(noted[::2], noted[1::2], strict=True):
        torch.testing.assert_close(hidden, hidden_again, rtol=0, atol=1e-4)
        assert torch.equal(target, target_again)
    assert not torch.equal(noted[0][1], noted[2][1])


class Failing(Tiny):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        raise RuntimeError("late")


@pytest.mark.parametrize("host", [Tiny, Failing])
def test_no_hook_stays(host):
    net = type("HookNet", (ManifoldMixupMixin, host), {})(smooth(), manifold_mixup_layers="network.0", **ALPHA)
    try:
        net.training_step(batches(1)[0], 0)
    except RuntimeError:
        assert host is Failing
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    x = torch.randn(8, 4)
    assert torch.equal(net(x), net.network[2](torch.tanh(net.network[0](x))))


class Recurrent(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 6, batch_first=batch_first), nn.Linear(6, 3)
        self.copied, self.unused = nn.Identity(), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.copied(self.rnn(x)[0]).mean(1 if self.rnn.batch_first else 0))


@pytest.mark.parametrize(
    ("layer", "batch_first", "message"),
    [
        (
            "network.rnn",
            True,
            "ManifoldMixupMixin cannot mix the output of 'network.rnn': it is a tuple. Name layers in "
            "manifold_mixup_layers that return one floating tensor [N, ...].",
        ),
        (
            "network.copied",
            False,
            "ManifoldMixupMixin cannot mix the output of 'network.copied': its shape is [16, 8, 6], but the first "
            "dimension must be the 8 samples. Name layers in manifold_mixup_layers that return one floating tensor "
            "[N, ...].",
        ),
        (
            "network.unused",
            True,
            "ManifoldMixupMixin drew the layer 'network.unused', but Tiny.training_step did not run it, or ran it "
            "inside torch.compile. Leave it out of manifold_mixup_layers.",
        ),
    ],
    ids=["tuple", "time first", "unused"],
)
def test_layers_that_cannot_be_mixed(layer, batch_first, message):
    net = Net(Recurrent(batch_first), manifold_mixup_layers=layer, **ALPHA)
    x = torch.randn(8, 16, 4) if batch_first else torch.randn(16, 8, 4)
    size = 8
    with pytest.raises(InvalidValueError) as caught:
        net.training_step(({"features": x, "mask": torch.ones(1)}, torch.zeros(size).long()), 0)
    assert str(caught.value) == message
    assert not any(m._forward_hooks for m in net.modules())


def test_a_host_that_skips_the_batch_skips_it():
    class Skips(Tiny):
        def training_step(self, batch, batch_idx):
            return None

    net = type("SkipNet", (ManifoldMixupMixin, Skips), {})(smooth(), manifold_mixup_layers="network.0", **ALPHA)
    assert net.training_step(batches(1)[0], 0) is None


def test_values_are_mixed_as_they_are():
    class Regression(Tiny):
        def compute_loss(self, logits, target):
            self.targets.append(target)
            return F.mse_loss(logits.squeeze(1), target)

    net = type("Net", (ManifoldMixupMixin, Regression), {})(nn.Linear(4, 1), **ALPHA)
    del net.num_classes
    x, target = torch.randn(8, 4), torch.randn(8)
    share, partner, _ = drawn(8, 1)
    net.training_step((x, target), 0)
    np.testing.assert_allclose(array(net.targets[0]), mixed(array(target), share, partner), atol=1e-6)


def test_a_share_of_one_is_the_plain_batch(monkeypatch):
    monkeypatch.setattr("lightning_tuning.mixins.regularization.manifold_mixup.sample_beta", lambda alpha: 1.0)
    net, (x, ids) = Net(smooth(), manifold_mixup_layers="network.0", **ALPHA), batches(1)[0]
    net.training_step((x, ids), 0)
    assert torch.equal(net.logits[0], net(x))
    assert torch.equal(net.targets[0], F.one_hot(ids, 3).float())


def test_the_logged_term_is_the_larger_share():
    net = Net(smooth(), **ALPHA)
    share, _, _ = drawn(8, 2)
    trainer = fit(net, batches(1))
    assert trainer.callback_metrics["train/manifold_mixup_epoch"].item() == pytest.approx(max(share, 1 - share))


def test_off_hands_on_the_very_batch_and_draws_nothing():
    net, batch, state = Net(smooth(), manifold_mixup_alpha=0), batches(1)[0], torch.get_rng_state()
    net.training_step(batch, 0)
    assert net.batches[0] is batch
    assert torch.equal(torch.get_rng_state(), state)


def test_values_out_of_range():
    with pytest.raises(InvalidValueError, match=r"manifold_mixup_alpha is -1; it must be a number in \[0, inf\)"):
        Net(smooth(), manifold_mixup_alpha=-1)
    with pytest.raises(InvalidValueError, match=r"manifold_mixup_layers is 'a\(', which is no regular expression"):
        Net(smooth(), manifold_mixup_layers="a(", **ALPHA)


def test_layers_in_evaluation_mode_are_mixed_too():
    """Such as a pretrained network that nobody has put into training mode."""
    net = Net(smooth().eval(), lr=0.0, manifold_mixup_layers="network.0", **ALPHA)
    (x, ids), (share, partner, _) = batches(1)[0], drawn(8, 1)
    fit(net, [(x, ids)])
    hidden = torch.tensor(mixed(array(net.network[0](x)), share, partner)).float()
    np.testing.assert_allclose(array(net.logits[0]), array(net.network[2](torch.tanh(hidden))), atol=1e-5)
