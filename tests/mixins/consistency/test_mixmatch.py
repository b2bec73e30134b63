import copy

import numpy as np
import pytest
import torch

from lightning_tuning import EMATeacherMixin, MixMatchMixin, SAMMixin
from lightning_tuning.errors import CompositionError, InvalidValueError
from lightning_tuning.mixins import FixMatchMixin, mixed_streams
from lightning_tuning.mixins.plan import check_plan
from tests.mixins.tiny import Tiny, batches, convolution, deep, fit, linear, smooth, streams
from tests.numerics import array, cross_entropy, one_hot, softmax


class Net(MixMatchMixin, Tiny):
    pass


class TaughtNet(EMATeacherMixin, MixMatchMixin, Tiny):
    pass


def two_weak_views(**kwargs):
    """A batch of 4 labelled samples and 8 unlabelled ones in two weak views."""
    batch = streams(1, **kwargs)[0]
    weak = batch["unlabeled"]["weak"]
    return {**batch, "unlabeled": {**batch["unlabeled"], "weak_2": weak - 0.7 * weak.roll(1, 1)}}


@pytest.fixture
def draws(monkeypatch):
    """Fixes the shares and the partners, and returns both for a number of samples."""

    def fixed(count):
        shares = 0.5 + 0.5 * np.random.default_rng(5).random(count)
        return shares, np.random.default_rng(6).permutation(count)

    monkeypatch.setattr(mixed_streams, "dominant_shares", lambda n, alpha: torch.from_numpy(fixed(n)[0]))
    monkeypatch.setattr(torch, "randperm", lambda n, **kwargs: torch.from_numpy(fixed(n)[1]))
    return fixed


def guess_labels(logits_of_views, temperature):
    """Equations 6 and 7."""
    mean = sum(softmax(array(logits)) for logits in logits_of_views) / len(logits_of_views)
    powers = mean ** (1 / temperature)
    return powers / powers.sum(1, keepdims=True)


def mix_all(x, p, views, q, draws):
    """Algorithm 1, lines 10 to 14, sample by sample: X' and U', each a list of pairs."""
    samples = list(zip(x, p, strict=True)) + [pair for view in views for pair in zip(view, q, strict=True)]
    shares, order = draws(len(samples))
    shuffled = [samples[i] for i in order]
    mixed = [
        (s * own[0] + (1 - s) * other[0], s * own[1] + (1 - s) * other[1])
        for s, own, other in zip(shares, samples, shuffled, strict=True)
    ]
    return [np.stack(part) for half in (mixed[: len(x)], mixed[len(x) :]) for part in zip(*half, strict=True)]


def parts(batch):
    (x, ids), unlabeled = batch["labeled"], batch["unlabeled"]
    return array(x), one_hot(ids.numpy(), 3), [array(unlabeled["weak"]), array(unlabeled["weak_2"])]


def logits_of(net, x):
    return array(net.network(torch.from_numpy(x).float()))


def test_loss(draws):
    net, batch = Net(smooth(), mixmatch_weight=7.0, mixmatch_temperature=0.4), two_weak_views()
    loss = net.training_step(batch, 0).item()
    x, p, views = parts(batch)
    q = guess_labels([net.network(batch["unlabeled"][name]) for name in ("weak", "weak_2")], 0.4)
    mixed_x, mixed_p, mixed_u, mixed_q = mix_all(x, p, views, q, draws)
    labeled = cross_entropy(logits_of(net, mixed_x), mixed_p)
    squares = (mixed_q - softmax(logits_of(net, mixed_u))) ** 2
    unlabeled = sum(squares[n, c] for n in range(16) for c in range(3)) / (16 * 3)
    assert unlabeled > 0.01
    assert loss == pytest.approx(labeled + 7.0 * unlabeled, rel=1e-5)


def test_the_host_gets_the_mixed_labelled_inputs(draws):
    net, batch = Net(smooth()), two_weak_views()
    net.training_step(batch, 0)
    x, p, views = parts(batch)
    q = guess_labels([net.network(batch["unlabeled"][name]) for name in ("weak", "weak_2")], 0.5)
    mixed_x, mixed_p, _, _ = mix_all(x, p, views, q, draws)
    (given,) = net.batches
    np.testing.assert_allclose(array(given[0]), mixed_x, atol=1e-6)
    np.testing.assert_allclose(array(given[1]), mixed_p, atol=1e-6)


def test_gradient_of_a_linear_classifier_by_hand(draws):
    """Of the cross entropy (p - y) x^T / N; of the squared error 2 / (M C) of the softmax's Jacobian times p - q."""
    net, batch = Net(linear(), mixmatch_weight=7.0), two_weak_views()
    x, p, views = parts(batch)
    q = guess_labels([net.network(batch["unlabeled"][name]) for name in ("weak", "weak_2")], 0.5)
    mixed_x, mixed_p, mixed_u, mixed_q = mix_all(x, p, views, q, draws)
    net.training_step(batch, 0).backward()
    of_labeled = (softmax(logits_of(net, mixed_x)) - mixed_p) / len(mixed_x)
    predicted = softmax(logits_of(net, mixed_u))
    error = predicted - mixed_q
    of_unlabeled = 2 / error.size * predicted * (error - (predicted * error).sum(1, keepdims=True))
    expected = of_labeled.T @ mixed_x + 7.0 * of_unlabeled.T @ mixed_u
    np.testing.assert_allclose(array(net.network.weight.grad), expected, atol=1e-5)


def test_the_batch_stays_as_it_is():
    batch = two_weak_views()
    before = copy.deepcopy(batch)
    Net(smooth()).training_step(batch, 0)
    assert torch.equal(batch["labeled"][0], before["labeled"][0])
    assert batch["labeled"][1] is not before["labeled"][1]
    assert torch.equal(batch["labeled"][1], before["labeled"][1])
    assert torch.equal(batch["unlabeled"]["weak"], before["unlabeled"]["weak"])


def test_a_small_alpha_hardly_mixes_and_a_large_one_takes_halves():
    batch = streams(1)[0]
    x, _ = batch["labeled"]
    everything = torch.cat([x, batch["unlabeled"]["weak"]])
    torch.manual_seed(0)
    hardly, halves = Net(smooth(), mixmatch_alpha=1e-4), Net(smooth(), mixmatch_alpha=1e6)
    for net in (hardly, halves):
        net.training_step(batch, 0)
    torch.testing.assert_close(hardly.batches[0][0], x, atol=1e-3, rtol=0)
    middles = (x[:, None] + everything[None]) / 2
    distance = (halves.batches[0][0][:, None] - middles).abs().amax(2).amin(1)
    assert distance.max() < 0.01


def test_shares_and_partners_are_random_and_follow_the_seed():
    net, batch = Net(smooth()), streams(1)[0]
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        net.training_step(batch, 0)
    first, again, other = (x for x, _ in net.batches)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_batch_norm_sees_one_joint_batch_or_two(draws):
    shape = (2, 5, 5)
    for statistics in ("joint", "separate"):
        network, batch = convolution(), two_weak_views(size=6, shape=shape)
        network[4].p = 0.0
        net = Net(copy.deepcopy(network), mixmatch_weight=7.0, mixmatch_statistics=statistics)
        loss = net.training_step(batch, 0).item()
        x, p, views = parts(batch)
        q = guess_labels([network(batch["unlabeled"][name]) for name in ("weak", "weak_2")], 0.5)
        mixed_x, mixed_p, mixed_u, mixed_q = mix_all(x, p, views, q, draws)
        mixed = [torch.from_numpy(part).float() for part in (mixed_x, mixed_u)]
        joint = network(torch.cat(mixed)).split([len(mixed_x), len(mixed_u)])
        logits = joint if statistics == "joint" else [network(part) for part in mixed]
        expected = cross_entropy(array(logits[0]), mixed_p)
        expected += 7.0 * np.mean((mixed_q - softmax(array(logits[1]))) ** 2)
        assert loss == pytest.approx(expected, rel=1e-5)


def test_with_a_teacher_left_of_it_the_teacher_guesses(draws):
    net, batch = TaughtNet(smooth(), ema_teacher_decay=0.9, mixmatch_weight=7.0), two_weak_views()
    net.configure_model()
    with torch.no_grad():
        for parameter in net.ema_teacher.network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    loss = net.training_step(batch, 0).item()
    x, p, views = parts(batch)
    q = guess_labels([net.ema_teacher.network(batch["unlabeled"][name]) for name in ("weak", "weak_2")], 0.5)
    mixed_x, mixed_p, mixed_u, mixed_q = mix_all(x, p, views, q, draws)
    expected = cross_entropy(logits_of(net, mixed_x), mixed_p)
    expected += 7.0 * np.mean((mixed_q - softmax(logits_of(net, mixed_u))) ** 2)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_no_gradient_reaches_the_guess(draws):
    """A network that sees the weak views only in its guesses would have no gradient through them."""
    net, batch = Net(smooth()), streams(1)[0]
    graphs = []
    net.pseudo_logits = lambda x: graphs.append(MixMatchMixin.pseudo_logits(net, x)) or graphs[-1]
    net.training_step(batch, 0)
    assert len(graphs) == 1
    assert not graphs[0].requires_grad


def test_the_weight_follows_the_ramp(draws):
    batch = two_weak_views()
    full, ramped = (Net(smooth(), mixmatch_weight=8.0, mixmatch_ramp="linear 4 steps") for _ in range(2))
    ramped.load_state_dict(full.state_dict())
    none = Net(smooth(), mixmatch_weight=1e-9)
    none.load_state_dict(full.state_dict())
    ramped.ramped = lambda weight, ramp: {"linear 4 steps": 0.25}[ramp] * weight
    losses = [net.training_step(batch, 0).item() for net in (none, ramped, full)]
    assert losses[1] - losses[0] == pytest.approx(0.25 * (losses[2] - losses[0]), rel=1e-4)


def test_dict_inputs(draws):
    net, batch = Net(smooth()), two_weak_views()
    expected = net.training_step(batch, 0).item()

    def as_dict(values):
        return {"features": values, "mask": torch.ones_like(values)}

    (x, ids), unlabeled = batch["labeled"], batch["unlabeled"]
    dicts = {"labeled": (as_dict(x), ids), "unlabeled": {name: as_dict(view) for name, view in unlabeled.items()}}
    assert net.training_step(dicts, 0).item() == pytest.approx(expected, rel=1e-6)


def test_a_target_of_probabilities_is_mixed_as_it_is(draws):
    batch = two_weak_views()
    x, ids = batch["labeled"]
    soft = {**batch, "labeled": (x, torch.eye(3)[ids])}
    net = Net(smooth())
    assert net.training_step(batch, 0).item() == pytest.approx(net.training_step(soft, 0).item(), rel=1e-6)


@pytest.mark.parametrize(("unknown", "expected"), [(0, 6 / 8), (1, 6 / 7), (5, 2 / 3)])
def test_terms(unknown, expected):
    """True classes that are not known, -1, count neither as right nor as wrong."""
    batch = two_weak_views()
    net = Net(linear(), mixmatch_weight=3.0)
    with torch.no_grad():
        predicted = sum(net.network(batch["unlabeled"][name]).softmax(1) for name in ("weak", "weak_2")).argmax(1)
    true = predicted.clone()
    true[:2] = (true[:2] + 1) % 3  # six of eight are right
    true[{0: [], 1: [0], 5: [0, 3, 4, 5, 6]}[unknown]] = -1
    batch["unlabeled"]["target"] = true
    metrics = fit(net, [batch]).callback_metrics
    assert metrics["train/mixmatch_precision_epoch"].item() == pytest.approx(expected)
    assert 0 < metrics["train/mixmatch_epoch"].item() < 2 / 3


def test_sam_mixes_alike_in_both_passes():
    class Sharp(SAMMixin, MixMatchMixin, Tiny):
        pass

    net = Sharp(smooth(), sam_rho=0.1)
    fit(net, streams(2))
    for first, second in (net.batches[:2], net.batches[2:]):
        assert torch.equal(first[0], second[0])


def test_a_host_that_skips_the_batch_skips_it():
    class Skips(Tiny):
        def training_step(self, batch, batch_idx):
            return None

    class SkipsNet(MixMatchMixin, Skips):
        pass

    assert SkipsNet().training_step(streams(1)[0], 0) is None


def test_off_hands_on_the_labelled_part_without_a_pass_of_its_own():
    net, batch = Net(deep(), mixmatch_weight=0.0), streams(1)[0]
    calls = []
    net.network.register_forward_hook(lambda *_: calls.append(1))
    net.training_step(batch, 0)
    assert net.batches[0] is batch["labeled"]
    assert len(calls) == 1


def test_an_error_of_the_host_tells_of_its_new_target():
    class Counts(Tiny):
        def training_step(self, batch, batch_idx):
            x, target = batch
            (self(x).argmax(1) == target).float().mean()
            return self.compute_loss(self(x), target)

    class CountsNet(MixMatchMixin, Counts):
        pass

    with pytest.raises(RuntimeError) as caught:
        CountsNet().training_step(streams(1)[0], 0)
    assert "MixMatchMixin made the target of this batch class probabilities" in caught.value.__notes__[0]


def test_inputs_that_differ():
    batch = streams(1)[0]
    other = {"labeled": batch["labeled"], "unlabeled": {"weak": torch.zeros(8, 5), "strong": torch.zeros(8, 5)}}
    with pytest.raises(InvalidValueError) as caught:
        Net().training_step(other, 0)
    assert str(caught.value) == (
        "MixMatchMixin mixes labelled with unlabelled inputs, but these are torch.float32 [8, 5], and the labelled "
        "ones torch.float32 [4, 4]. They must be alike in all but the number of samples."
    )


def test_inputs_that_cannot_be_mixed():
    ids = torch.zeros(4, 4, dtype=torch.long)
    batch = {"labeled": (ids, ids[:, 0]), "unlabeled": {"weak": ids, "strong": ids}}
    net = Net(torch.nn.Sequential(torch.nn.Embedding(2, 3), torch.nn.Flatten(), torch.nn.Linear(12, 3)))
    with pytest.raises(InvalidValueError, match=r"MixMatchMixin cannot mix inputs of type torch\.int64"):
        net.training_step(batch, 0)


def test_a_batch_without_streams():
    with pytest.raises(InvalidValueError, match="MixMatchMixin needs batches"):
        Net().training_step(batches(1)[0], 0)


def test_with_another_of_its_family_the_plan_refuses():
    class Both(FixMatchMixin, MixMatchMixin, Tiny):
        pass

    with pytest.raises(CompositionError, match="conflict"):
        check_plan(Both())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mixmatch_weight", -1.0, "a number in [0, inf)"),
        ("mixmatch_temperature", 0.0, "a number in (0, 1]"),
        ("mixmatch_temperature", 1.5, "a number in (0, 1]"),
        ("mixmatch_alpha", 0, "a number in (0, inf)"),
        ("mixmatch_statistics", "both", "one of 'joint', 'separate'"),
        ("mixmatch_ramp", "linear", "sigmoid 0.4dur"),
    ],
)
def test_a_value_that_is_not_allowed(name, value, message):
    with pytest.raises(InvalidValueError) as caught:
        Net(**{name: value})
    assert str(caught.value).startswith(f"{name} is {value!r}")
    assert message in str(caught.value)


def test_weak_views_alone_will_do():
    net, whole = Net(smooth(), mixmatch_alpha=0.7), two_weak_views()
    views = {name: whole["unlabeled"][name] for name in ("weak", "weak_2")}
    losses = []
    for unlabeled in (whole["unlabeled"], views):
        torch.manual_seed(2)
        losses.append(net.training_step({**whole, "unlabeled": unlabeled}, 0))
    assert torch.equal(*losses)
