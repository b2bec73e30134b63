import copy

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from lightning_tuning import EMATeacherMixin, ReMixMatchMixin, SAMMixin
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.mixins import mixed_streams, rotation
from tests.contract import nets
from tests.contract.settings import ROWS
from tests.mixins.tiny import NUM_CLASSES, Tiny, assert_same, batches, fit, linear, smooth, streams
from tests.numerics import array, cross_entropy, one_hot, softmax

SHAPE = (2, 5, 5)


class Net(ReMixMatchMixin, Tiny):
    pass


def images():
    """For images ``[N, 2, 5, 5]``, without batch norm and dropout."""
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 6), nn.Tanh(), nn.Linear(6, 3))


def flat(**arguments):
    """A host for vectors, and so without rotations."""
    return Net(smooth(), remixmatch_rotation_weight=0.0, **arguments)


def data(count=1, shape=(4,), dtype=torch.float32):
    """Batches with two strong views."""
    made = streams(count, shape=shape, dtype=dtype)
    for batch in made:
        strong = batch["unlabeled"]["strong"]
        batch["unlabeled"]["strong_2"] = strong - 0.7 * strong.roll(1, 1)
    return made


@pytest.fixture
def draws(monkeypatch):
    """Fixes the shares, the partners and the turns, and returns the first two for a number of samples."""

    def fixed(count):
        return 0.5 + 0.5 * np.random.default_rng(5).random(count), np.random.default_rng(6).permutation(count)

    monkeypatch.setattr(mixed_streams, "dominant_shares", lambda n, alpha: torch.from_numpy(fixed(n)[0]))
    monkeypatch.setattr(torch, "randperm", lambda n, **kwargs: torch.from_numpy(fixed(n)[1]))
    monkeypatch.setattr(rotation.torch, "randint", lambda high, size, **kwargs: torch.arange(size[0]) % high)
    return fixed


def guess(predicted, target, temperature=0.5):
    """Of the first batch: aligned by its own mean prediction, then sharpened (section 3.1, algorithm 1)."""
    q = softmax(array(predicted))
    counts = 1 + array(target).sum(0)
    q = q * (counts / counts.sum()) / q.mean(0)
    q = (q / q.sum(1, keepdims=True)) ** (1 / temperature)
    return q / q.sum(1, keepdims=True)


def reference(net, batch, draws, temperature=0.5, teacher=None):
    """The terms of equation 4 before their weights: labelled, unlabelled, premix."""
    (x, ids), unlabeled = batch["labeled"], batch["unlabeled"]
    p = one_hot(ids.numpy(), 3)
    q = guess((teacher or net.network)(unlabeled["weak"]), torch.from_numpy(p), temperature)
    samples = list(zip(array(x), p, strict=True))
    for view in ("strong", "strong_2", "weak"):
        samples += zip(array(unlabeled[view]), q, strict=True)
    shares, order = draws(len(samples))
    mixed = [
        (s * samples[i][0] + (1 - s) * samples[j][0], s * samples[i][1] + (1 - s) * samples[j][1])
        for i, (s, j) in enumerate(zip(shares, order, strict=True))
    ]

    def loss(pairs):
        inputs, labels = (np.stack(part) for part in zip(*pairs, strict=True))
        return cross_entropy(array(net.network(torch.from_numpy(inputs).to(x.dtype))), labels)

    premix = cross_entropy(array(net.network(unlabeled["strong"])), q)
    return loss(mixed[: len(x)]), loss(mixed[len(x) :]), premix


def test_loss_of_vectors(draws):
    net, (batch,) = flat(remixmatch_weight=1.5, remixmatch_premix_weight=0.4, remixmatch_temperature=0.6), data()
    loss = net.training_step(batch, 0).item()
    labeled, unlabeled, premix = reference(net, batch, draws, 0.6)
    assert loss == pytest.approx(labeled + 1.5 * unlabeled + 0.4 * premix, rel=1e-4)


def test_rotation_loss(draws):
    net, (batch,) = Net(images(), remixmatch_rotation_weight=0.7), data(shape=SHAPE)
    loss = net.training_step(batch, 0).item()
    labeled, unlabeled, premix = reference(net, batch, draws)
    turns = np.arange(8) % 4
    turned = np.stack([np.rot90(x, k, (1, 2)) for x, k in zip(array(batch["unlabeled"]["strong"]), turns, strict=True)])
    features = array(net.network[:5](torch.from_numpy(turned.copy()).float()))
    head = net.remixmatch_head
    logits = features @ array(head.weight).T + array(head.bias)
    rotated = cross_entropy(logits, one_hot(turns, 4))
    assert loss == pytest.approx(labeled + 1.5 * unlabeled + 0.5 * premix + 0.7 * rotated, rel=1e-4)


def test_the_turns_are_random_and_all_occur():
    net, (batch,) = Net(images()), data(shape=SHAPE)
    seen = []
    net.remixmatch_head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    for _ in range(6):
        net.training_step(batch, 0)
    strong = batch["unlabeled"]["strong"]
    each = torch.stack([net.network[:5](strong.rot90(k, (2, 3))) for k in range(4)])  # [4, N, F]
    turns = torch.stack([(each - rows).abs().amax(2).argmin(0) for rows in seen])
    assert set(turns.flatten().tolist()) == {0, 1, 2, 3}
    assert len(turns.unique(dim=0)) > 1
    assert len(turns[0].unique()) > 1


def test_the_rotation_trains_the_head_and_the_features_but_not_the_last_layer():
    net, (batch,) = Net(images()), data(shape=SHAPE)
    net.remixmatch_head.loss(net, batch["unlabeled"]["strong"], "ReMixMatchMixin").backward()
    assert net.network[5].weight.grad is None
    assert net.network[0].weight.grad.abs().sum() > 0
    assert net.remixmatch_head.weight.grad.abs().sum() > 0


def test_the_head_is_trained_and_saved():
    net = Net(images())
    before = net.remixmatch_head.weight.detach().clone()
    fit(net, data(shape=SHAPE))
    assert not torch.equal(net.remixmatch_head.weight, before)
    assert {"remixmatch_head.weight", "remixmatch_state.recent"} <= net.state_dict().keys()
    assert not net.network[5]._forward_pre_hooks


def test_gradient_of_a_linear_classifier_by_hand(draws):
    """Cross entropies alone: each (p - q) x^T / N; none flows through the guess."""
    net = Net(linear(), remixmatch_rotation_weight=0.0).double()
    (batch,) = data(dtype=torch.float64)
    net.training_step(batch, 0).backward()
    weight = net.network.weight.detach().clone()
    step = 1e-6
    frozen = copy.deepcopy(net)  # its predictions give the guesses while the other's weights move
    for place in ((0, 0), (1, 2), (2, 3)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                net.network.weight.copy_(weight)
                net.network.weight[place] += sign * step
            labeled, unlabeled, premix = reference(net, batch, draws, teacher=frozen.network)
            values.append(labeled + 1.5 * unlabeled + 0.5 * premix)
        slope = (values[0] - values[1]) / (2 * step)
        assert net.network.weight.grad[place].item() == pytest.approx(slope, abs=1e-4)


def test_with_a_teacher_left_of_it_the_teacher_guesses(draws):
    class Taught(EMATeacherMixin, ReMixMatchMixin, Tiny):
        pass

    net, (batch,) = Taught(smooth(), ema_teacher_decay=0.9, remixmatch_rotation_weight=0.0), data()
    net.configure_model()
    with torch.no_grad():
        for parameter in net.ema_teacher.network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    assert "remixmatch_state" not in net.ema_teacher._modules
    labeled, unlabeled, premix = reference(net, batch, draws, teacher=net.ema_teacher.network)
    assert net.training_step(batch, 0).item() == pytest.approx(labeled + 1.5 * unlabeled + 0.5 * premix, rel=1e-4)


def test_the_premix_term_can_be_left_out(draws):
    net, (batch,) = flat(remixmatch_premix_weight=0.0), data()
    labeled, unlabeled, _ = reference(net, batch, draws)
    assert net.training_step(batch, 0).item() == pytest.approx(labeled + 1.5 * unlabeled, rel=1e-4)


def test_the_ramp_is_for_the_two_terms_of_guesses(draws):
    net, (batch,) = Net(images(), remixmatch_ramp="linear 4 steps", remixmatch_rotation_weight=0.7), data(shape=SHAPE)
    net.ramped = lambda weight, ramp: {"linear 4 steps": 0.25}[ramp] * weight
    loss = net.training_step(batch, 0).item()
    labeled, unlabeled, premix = reference(net, batch, draws)
    rotated = net.remixmatch_head.loss(net, batch["unlabeled"]["strong"], "").item()
    assert loss == pytest.approx(labeled + 0.25 * (1.5 * unlabeled + 0.5 * premix) + 0.7 * rotated, rel=1e-4)


class Still(Net):
    """Does not move, so that what it predicts is known."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def state_after(made, network, window, per_step):
    """``recent``, ``labels`` and ``steps`` after steps of ``per_step`` batches each."""
    means = [array(network(b["unlabeled"]["weak"]).softmax(1)).mean(0) for b in made]
    counts = [one_hot(b["labeled"][1].numpy(), 3).sum(0) for b in made]
    steps = range(0, len(made), per_step)
    means = [np.mean(means[k : k + per_step], axis=0) for k in steps]
    labels = 1 + sum(counts)
    recent = np.zeros((window, NUM_CLASSES))
    for step, mean in enumerate(means):
        recent[step % window] = mean
    return recent, labels, len(means)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("sharp", [False, True])
def test_the_state_advances_once_a_step(accumulate, sharp):
    class Sharp(SAMMixin, Still):
        pass

    net = (Sharp if sharp else Still)(
        smooth(), remixmatch_rotation_weight=0.0, remixmatch_window=3, **({"sam_rho": 0.5} if sharp else {})
    )
    made = data(8)
    fit(net, made, accumulate_grad_batches=accumulate)
    recent, labels, steps = state_after(made, net.network, 3, accumulate)
    np.testing.assert_allclose(array(net.remixmatch_state.recent), recent, atol=1e-6)
    np.testing.assert_allclose(array(net.remixmatch_state.labels), labels, atol=1e-5)
    assert net.remixmatch_state.steps == steps


class SaveState(pl.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, module):
        torch.save(module.remixmatch_state.state_dict(), self.folder / f"{trainer.global_rank}.pt")


def test_the_state_of_two_ranks_is_that_of_their_joint_batches(tmp_path):
    setting = ROWS["remixmatch"][1]

    def fitted(batch_size, **kwargs):
        net = nets.make("remixmatch", plain=True).double()
        net.configure_optimizers = lambda: torch.optim.SGD(net.parameters(), lr=0.0)
        callbacks = [SaveState(tmp_path)]
        made = nets.trainer(tmp_path, precision="64-true", max_epochs=1, callbacks=callbacks, **kwargs)
        made.fit(net, nets.loaders(setting, batch_size, 16, torch.float64))
        return net

    one = fitted(8).remixmatch_state.state_dict()
    fitted(4, strategy="ddp_fork", devices=2)
    for rank in (0, 1):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(state["recent"], one["recent"])
        assert torch.equal(state["steps"], one["steps"])
        # Labels are counted over the ranks, so they are those of the joint batch.
        torch.testing.assert_close(state["labels"], one["labels"])


def test_terms():
    (batch,) = data(shape=SHAPE)
    net = Net(images())
    batch["unlabeled"]["target"] = torch.zeros(8, dtype=torch.long)
    metrics = fit(net, [batch]).callback_metrics
    for term in ("remixmatch", "remixmatch_premix", "remixmatch_rotation", "remixmatch_precision"):
        assert torch.isfinite(metrics[f"train/{term}_epoch"])


def test_a_host_that_skips_the_batch_skips_it():
    class Skips(Tiny):
        def training_step(self, batch, batch_idx):
            return None

    class SkipsNet(ReMixMatchMixin, Skips):
        pass

    assert SkipsNet(remixmatch_rotation_weight=0.0).training_step(data()[0], 0) is None


def test_off_adds_nothing():
    net, (batch,) = Net(smooth(), remixmatch_weight=0.0), data()
    assert net.state_dict().keys() == Tiny(smooth()).state_dict().keys()
    net.training_step(batch, 0)
    assert net.batches[0] is batch["labeled"]


def test_without_rotations_there_is_no_head():
    assert not [name for name in flat().state_dict() if name.startswith("remixmatch_head")]


@pytest.mark.parametrize(("pattern", "layer", "features"), [(None, "network.5", 6), (r"network\.3", "network.3", 36)])
def test_the_layer_that_the_features_feed(pattern, layer, features):
    head = Net(images(), remixmatch_features=pattern).remixmatch_head
    assert (head.layer, head.in_features, head.out_features) == (layer, features, 4)


def test_a_host_that_builds_its_layers_late():
    class Late(Tiny):
        def configure_model(self):
            if not isinstance(self.network, nn.Sequential):
                self.network = images()

    class LateNet(ReMixMatchMixin, Late):
        pass

    net = LateNet(nn.Identity())
    assert "remixmatch_head" not in net._modules
    net.configure_model()
    head = net.remixmatch_head
    net.configure_model()
    assert net.remixmatch_head is head
    assert head.layer == "network.5"


def test_a_copy_and_a_resumed_run_have_the_same_head():
    net = Net(images())
    other = Net(images())
    other.load_state_dict(net.state_dict())
    assert_same(copy.deepcopy(net).state_dict(), other.state_dict())


def test_a_checkpoint_of_a_run_without_it_can_be_loaded():
    net, plain = Net(images()), Tiny(images())
    head = net.remixmatch_head.weight.detach().clone()
    net.load_state_dict(plain.state_dict())
    assert torch.equal(net.network[0].weight, plain.network[0].weight)
    assert torch.equal(net.remixmatch_head.weight, head)


@pytest.mark.parametrize("network", [nn.Sequential(nn.Conv2d(2, 3, 5), nn.Flatten()), images()])
def test_no_layer_to_tell_rotations_from(network):
    has_layers = len(network) > 2
    pattern = "head" if has_layers else None
    net = Net(network, remixmatch_features=pattern)
    with pytest.raises(InvalidValueError) as caught:
        fit(net, data(shape=SHAPE))
    names = "network.3, network.5" if has_layers else "none"
    assert str(caught.value) == (
        f"ReMixMatchMixin finds no layer to tell rotations from: remixmatch_features is {pattern!r}, and the nn.Linear "
        f"layers of Tiny are: {names}. Name one of them, or write remixmatch_rotation_weight=0."
    )


def test_an_optimizer_without_the_head():
    class Own(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.network.parameters(), lr=0.1)

    with pytest.raises(InvalidValueError, match="No optimizer has the parameters of remixmatch_head"):
        fit(Own(images()), data(shape=SHAPE))


@pytest.mark.parametrize(
    ("shape", "network", "message"),
    [
        ((4,), smooth, r"takes images \[N, C, H, W\] of one size, but the input is \[8, 4\]"),
        ((2, 3, 4), lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 3)), "they are 3 pixels high and 4 wide"),
    ],
)
def test_inputs_that_cannot_be_turned(shape, network, message):
    with pytest.raises(InvalidValueError, match=message) as caught:
        Net(network()).training_step(data(shape=shape)[0], 0)
    assert str(caught.value).endswith("Write remixmatch_rotation_weight=0 for other inputs.")


def test_a_layer_whose_inputs_are_no_features_of_an_image():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.head = nn.Linear(5, 4), nn.Linear(40, 3)

        def forward(self, x):
            return self.head(self.rows(x).flatten(1))

    with pytest.raises(InvalidValueError, match=r"\[N, 5\] at the layer network\.rows, but .* got \[8, 2, 5, 5\]"):
        Net(Rows(), remixmatch_features=r".*\.rows").training_step(data(shape=SHAPE)[0], 0)


def test_a_batch_without_streams():
    with pytest.raises(InvalidValueError, match="ReMixMatchMixin needs batches"):
        flat().training_step(batches(1)[0], 0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("remixmatch_weight", -1.0, "a number in [0, inf)"),
        ("remixmatch_premix_weight", -1.0, "a number in [0, inf)"),
        ("remixmatch_rotation_weight", -1.0, "a number in [0, inf)"),
        ("remixmatch_temperature", 0.0, "a number in (0, 1]"),
        ("remixmatch_alpha", 0.0, "a number in (0, inf)"),
        ("remixmatch_window", 0, "an integer of at least 1"),
        ("remixmatch_statistics", "both", "one of 'joint', 'separate'"),
        ("remixmatch_ramp", "40%", "sigmoid 0.4dur"),
    ],
)
def test_a_value_that_is_not_allowed(name, value, message):
    with pytest.raises(InvalidValueError) as caught:
        Net(**{name: value})
    assert str(caught.value).startswith(f"{name} is {value!r}")
    assert message in str(caught.value)
