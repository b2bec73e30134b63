import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning import AdversarialMixin, EMATeacherMixin, SAMMixin
from lightning_tuning.data.normalize import Normalize
from lightning_tuning.errors import CompositionError, InvalidValueError
from tests.mixins.tiny import Tiny, batches, deep, fit, linear, smooth
from tests.numerics import array, cross_entropy, kl, one_hot, softmax

from . import by_hand


class Net(AdversarialMixin, Tiny):
    pass


class TaughtNet(EMATeacherMixin, AdversarialMixin, Tiny):
    pass


def numpy_pgd(net, x, y, epsilon, steps, size, norm, start=None):
    """Against the cross entropy of a linear classifier, in float64; the range is [0, 1] if there is a start."""
    w, b = array(net.network.weight), array(net.network.bias)
    x, delta = array(x), np.zeros(x.shape) if start is None else array(start)
    for _ in range(steps):
        g = (softmax((x + delta) @ w.T + b) - one_hot(y.numpy(), 3)) @ w
        g = np.sign(g) if norm == "linf" else g / np.linalg.norm(g, axis=1, keepdims=True)
        delta = delta + size * g
        if norm == "linf":
            delta = np.clip(delta, -epsilon, epsilon)
        else:
            delta = delta / np.maximum(1, np.linalg.norm(delta, axis=1, keepdims=True) / epsilon)
    return x + delta


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("steps", "size"), [(1, None), (4, None), (3, 0.02)])
def test_the_host_is_trained_on_the_inputs_that_pgd_finds(norm, steps, size):
    net = Net(
        linear(),
        adversarial_epsilon=0.2,
        adversarial_steps=steps,
        adversarial_step_size=size,
        adversarial_norm=norm,
        adversarial_random_start=False,
    )
    x, y = batches(1)[0]
    loss = net.training_step((x, y), 0)
    expected = numpy_pgd(net, x, y, 0.2, steps, size or (0.2 if steps == 1 else 0.125), norm)
    moved, target = net.batches[0]
    np.testing.assert_allclose(array(moved), expected, atol=1e-6)
    assert target is y
    assert loss.item() == pytest.approx(cross_entropy(array(net.logits[0]), one_hot(y.numpy(), 3)), rel=1e-5)
    assert loss.item() > F.cross_entropy(net(x), y).item()


@pytest.mark.parametrize("steps", [1, 2])
def test_a_random_start(steps):
    net = Net(linear(), adversarial_epsilon=0.2, adversarial_steps=steps, adversarial_step_size=0.1)
    x, y = batches(1)[0]
    torch.manual_seed(7)
    start = torch.empty_like(x).uniform_(-0.2, 0.2)
    torch.manual_seed(7)
    net.training_step((x, y), 0)
    np.testing.assert_allclose(
        array(net.batches[0][0]), numpy_pgd(net, x, y, 0.2, steps, 0.1, "linf", start), atol=1e-6
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_one_step_begins_at_a_random_point_that_is_not_cut_to_the_range(steps):
    """So that black pixels move as often downwards as upwards (Wong et al., 2020); PGD begins within the range."""
    net = Net(linear(), adversarial_epsilon=0.3, adversarial_steps=steps, adversarial_step_size=0.1)
    net.normalize = Normalize([0.0] * 4, [1.0] * 4)
    x, y = (torch.rand(8, 4) > 0.5).float(), batches(1)[0][1]
    torch.manual_seed(7)
    start = array(torch.empty_like(x).uniform_(-0.3, 0.3))
    torch.manual_seed(7)
    net.training_step((x, y), 0)
    w, b, pixels = array(net.network.weight), array(net.network.bias), array(x)
    delta = start if steps == 1 else np.clip(pixels + start, 0, 1) - pixels
    for _ in range(steps):
        g = (softmax((pixels + delta) @ w.T + b) - one_hot(y.numpy(), 3)) @ w
        delta = np.clip(pixels + np.clip(delta + 0.1 * np.sign(g), -0.3, 0.3), 0, 1) - pixels
    np.testing.assert_allclose(array(net.batches[0][0]), pixels + delta, atol=1e-6)


def test_two_classes_have_the_closed_form():
    """Against class 0 every gradient has the sign of w1 - w0, wherever it is taken."""
    net = Net(nn.Linear(4, 2), adversarial_epsilon=0.25, adversarial_steps=30)
    x, y = batches(1)[0][0], torch.zeros(8, dtype=torch.long)
    net.training_step((x, y), 0)
    sign = (net.network.weight[1] - net.network.weight[0]).sign()
    torch.testing.assert_close(net.batches[0][0], x + 0.25 * sign)


def test_pixels_and_their_range():
    net = Net(linear(), adversarial_epsilon=0.3, adversarial_steps=1, adversarial_random_start=False)
    net.normalize = Normalize([0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8])
    mean, std = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.5, 0.6, 0.7, 0.8])
    pixels, (_, y) = torch.rand(8, 4), batches(1)[0]
    net.training_step(((pixels - mean) / std, y), 0)
    x = ((pixels - mean) / std).requires_grad_()
    F.cross_entropy(net(x), y).backward()
    expected = (pixels + 0.3 * x.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(net.batches[0][0] * std + mean, expected)
    assert (expected == 1).any()


def test_a_share_of_the_samples_stays_clean():
    net = Net(linear(), adversarial_epsilon=0.2, adversarial_clean_share=0.4)
    x, y = batches(1)[0]
    kept = []
    for step in range(3):
        net.training_step((x, y), step)
        clean = (net.batches[step][0] == x).all(1)
        assert clean.sum() == 3  # 0.4 of 8
        assert ((net.batches[step][0] - x).abs().amax(1)[~clean] > 0.1).all()
        kept.append(clean)
    assert not (torch.equal(kept[0], kept[1]) and torch.equal(kept[1], kept[2]))


def test_at_least_one_sample_is_moved():
    net = Net(linear(), adversarial_epsilon=0.2, adversarial_clean_share=0.99)
    x, y = batches(1, size=3)[0]
    net.training_step((x, y), 0)
    assert (net.batches[0][0] != x).any(1).sum() == 1


def test_what_is_logged_is_of_the_moved_samples():
    torch.manual_seed(0)
    net = Net(smooth(), adversarial_epsilon=0.2, adversarial_norm="l2", adversarial_clean_share=0.5)
    x, y = batches(1)[0]
    trainer = fit(net, [(x, y)])
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    moved = (net.batches[0][0] != x).any(1)
    logits = net.logits[0][moved]
    assert moved.sum() == 4
    assert metrics["train/adversarial_perturbation_epoch"] == pytest.approx(0.2, rel=1e-4)
    assert metrics["train/adversarial_epoch"] == pytest.approx(F.cross_entropy(logits, y[moved]).item(), rel=1e-5)
    right = (logits.argmax(1) == y[moved]).float().mean().item()
    assert metrics["train/adversarial_accuracy_epoch"] == pytest.approx(right)


@pytest.mark.parametrize("taught", [False, True])
def test_consistency(taught):
    """The loss of the clean inputs plus weight * KL(reference(clean) || student(moved)), the reference constant."""
    on = {"adversarial_epsilon": 0.2, "adversarial_steps": 3, "adversarial_target": "consistency"}
    torch.manual_seed(0)
    kind, more = (TaughtNet, {"ema_teacher_decay": 0.9}) if taught else (Net, {})
    net = kind(smooth().double(), adversarial_weight=0.7, **on, **more)
    reference = net.network
    if taught:
        net.configure_model()
        reference = net.ema_teacher.network
        nn.init.normal_(reference[2].weight)
    (x, y), seen = batches(1, dtype=torch.float64)[0], []
    net.network.register_forward_hook(lambda module, args, output: seen.append((args[0].detach(), output)))
    loss = net.training_step((x, y), 0)
    assert net.batches[0][0] is x
    moved, logits = seen[-1]
    assert ((moved - x).abs() <= 0.2 + 1e-12).all()
    clean, constant = net.network(x), array(reference(x))
    expected = cross_entropy(array(clean), one_hot(y.numpy(), 3)) + 0.7 * kl(constant, array(logits))
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    start = x + 0.1 * (moved - x)
    assert kl(constant, array(logits)) > kl(constant, array(net.network(start)))

    loss.backward()
    found = [p.grad.clone() for p in net.network.parameters()]
    net.network.zero_grad()
    p, log_q = torch.tensor(softmax(constant)), F.log_softmax(net.network(moved), dim=1)
    (F.cross_entropy(net.network(x), y) - 0.7 * (p * log_q).sum(1).mean()).backward()
    for gradient, parameter in zip(found, net.network.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-12)


def test_the_search_for_consistency_raises_the_divergence_itself():
    """Two classes, a linear student: KL grows with the distance, in the direction it has at the start."""
    net = Net(nn.Linear(4, 2), adversarial_epsilon=0.25, adversarial_steps=30, adversarial_target="consistency")
    seen = []
    net.network.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    x, y = batches(1)[0][0], torch.zeros(8, dtype=torch.long)
    net.training_step((x, y), 0)
    sign = (net.network.weight[1] - net.network.weight[0]).sign()
    side = ((seen[-1] - x) * sign).sum(1).sign()[:, None]
    torch.testing.assert_close(seen[-1], x + 0.25 * side * sign)


def test_batch_norm_and_random_numbers_are_those_of_the_hosts_own_pass():
    x, y = batches(1)[0]
    torch.manual_seed(0)
    net = Net(deep(), adversarial_epsilon=0.2, adversarial_random_start=False, adversarial_evaluation_mode=False)
    torch.manual_seed(1)
    net.training_step((x, y), 0)
    after = torch.rand(2)
    bare = Tiny(deep())
    bare.network.load_state_dict(net.network.state_dict())
    bare.network[1].reset_running_stats()
    torch.manual_seed(1)
    bare.training_step(net.batches[0], 0)
    assert torch.equal(bare.logits[0], net.logits[0])
    assert torch.equal(after, torch.rand(2))
    for name, value in bare.network.state_dict().items():
        assert torch.equal(value, net.network.state_dict()[name]), name


def test_off_hands_on_the_very_batch_and_draws_nothing():
    net, batch = Net(adversarial_epsilon=0), batches(1)[0]
    state = torch.get_rng_state()
    net.training_step(batch, 0)
    assert net.batches[0] is batch
    assert torch.equal(torch.get_rng_state(), state)


def test_validation_is_not_attacked():
    net, data = Net(adversarial_epsilon=0.2), batches(2)
    fit(net, data[:1], val_data=data[1:])
    assert torch.equal(net.targets[-1], data[1][1])
    assert len(net.batches) == 1


def test_probabilities_and_ignored_ids_as_targets():
    x, soft = torch.randn(8, 4), torch.rand(8, 3).softmax(1)
    net = Net(linear(), adversarial_epsilon=0.2, adversarial_steps=1, adversarial_random_start=False)
    net.training_step((x, soft), 0)
    moved = x.clone().requires_grad_()
    F.cross_entropy(net(moved), soft).backward()
    torch.testing.assert_close(net.batches[0][0], x + 0.2 * moved.grad.sign())
    ids = torch.tensor([0, -100, 2, 1, -100, 0, 1, 2])
    net.training_step((x, ids), 1)
    assert torch.equal((net.batches[1][0] == x).all(1), ids < 0)


def test_sam_climbs_on_the_same_adversarial_inputs_drawn_anew():
    class SAMNet(SAMMixin, AdversarialMixin, Tiny):
        pass

    net = SAMNet(smooth(), sam_rho=0.05, adversarial_epsilon=0.2)
    trainer = fit(net, batches(2))
    assert len(net.batches) == 4
    assert trainer.callback_metrics["train/adversarial_perturbation_epoch"].item() == pytest.approx(0.2, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adversarial_epsilon": -0.1}, r"adversarial_epsilon is -0.1"),
        ({"adversarial_clean_share": 1.0}, r"adversarial_clean_share is 1.0; it must be a number in \[0, 1\)"),
        ({"adversarial_target": "label"}, r"did you mean 'labels'\?"),
        ({"adversarial_weight": 0}, r"adversarial_weight is 0; it must be a number in \(0, inf\)"),
        (
            {"adversarial_target": "consistency", "adversarial_random_start": False},
            r"would find no slope. Write adversarial_random_start=True\.",
        ),
        (
            {"adversarial_target": "consistency", "adversarial_clean_share": 0.5},
            r"of clean inputs anyway. Write adversarial_clean_share=0\.",
        ),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        Net(**arguments)


@pytest.mark.parametrize("target", ["labels", "consistency"])
def test_a_single_output_has_no_classes(target):
    class Mean(AdversarialMixin, Tiny):
        def compute_loss(self, logits, target):
            super().compute_loss(logits.expand(-1, 2), target)
            return logits.mean()

    net = Mean(nn.Linear(4, 1), adversarial_target=target)
    with pytest.raises(InvalidValueError, match=r"^AdversarialMixin takes logits \[N, C, ...\] of two or more classes"):
        net.training_step((torch.randn(8, 4), torch.zeros(8, dtype=torch.long)), 0)


def test_two_attacks_on_one_class():
    from lightning_tuning import FreeAdversarialMixin

    class Both(AdversarialMixin, FreeAdversarialMixin, Tiny):
        pass

    with pytest.raises(CompositionError, match=r"AdversarialMixin and FreeAdversarialMixin conflict"):
        fit(Both(), batches(1))
    fit(Both(free_adversarial_epsilon=0), batches(1))


def test_a_teachers_own_statistics_follow_what_it_is_asked():
    net = TaughtNet(deep(), ema_teacher_buffers="own", adversarial_target="consistency", adversarial_steps=1)
    data = batches(3)
    fit(net, data)
    norm = net.ema_teacher.network[1]
    assert norm.num_batches_tracked == 3
    assert norm.running_mean.abs().min() > 0


def test_a_clean_share_where_the_host_reshapes_the_logits():
    net = type("Net", (AdversarialMixin, by_hand.Flattened), {})(linear(), adversarial_clean_share=0.5)
    trainer = fit(net, [by_hand.sequences()])
    assert "train/adversarial_perturbation_epoch" in trainer.callback_metrics
    assert "train/adversarial_epoch" not in trainer.callback_metrics  # which rows were moved is unknown there
