from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_tuning import AdversarialMixin, EMATeacherMixin, FreeAdversarialMixin, TRADESMixin
from lightning_tuning.callbacks import RobustAccuracy
from lightning_tuning.data.normalize import Normalize
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import PixelScale, error_odds
from lightning_tuning.mixins.attack import Attack, scales_of
from lightning_tuning.mixins.perturbable import Perturbable
from tests.mixins.tiny import Tiny, batches, convolution, deep, fit, smooth
from tests.numerics import array


def attack(**changes):
    given = {"epsilon": 0.3, "steps": 3, "step_size": None, "norm": "linf", "start": "uniform", **changes}
    start, evaluate = given.pop("start"), given.pop("evaluate", True)
    module = SimpleNamespace(**{f"trades_{name}": value for name, value in given.items()})
    return Attack.of(module, "trades", start, evaluate=evaluate)


def against(y):
    return lambda logits: error_odds(logits, y)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.embedding(x).mean(1))


KINDS = {
    "vectors": (smooth, lambda: torch.randn(6, 4)),
    "images": (convolution, lambda: torch.randn(6, 2, 5, 5)),
    "dict": (smooth, lambda: {"features": torch.randn(6, 4), "mask": torch.rand(6, 4), "language": "en"}),
    "tokens": (Tokens, lambda: torch.randint(9, (6, 5))),
}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_input_has_its_ball(kind, norm):
    torch.manual_seed(0)
    network, inputs = KINDS[kind]
    net, y = Tiny(network()).eval(), torch.randint(3, (6,))
    spot = Perturbable(net, inputs(), "Test")
    own = attack(norm=norm, steps=5)
    delta = own.perturb(net, spot, against(y))
    rows = np.concatenate([array(d).reshape(6, -1) for d in delta], axis=1)
    sizes = np.abs(rows).max(1) if norm == "linf" else np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(sizes, 0.3, rtol=1e-5)
    assert own.size(net, spot, delta).item() == pytest.approx(0.3, rel=1e-5)
    zero = [torch.zeros_like(d) for d in delta]
    assert error_odds(spot.logits(delta), y) > error_odds(spot.logits(zero), y) + 0.1
    assert not any(d.requires_grad for d in delta)


@pytest.mark.parametrize("evaluate", [True, False])
def test_an_attack_leaves_nothing_behind(evaluate):
    net = Tiny(nn.Sequential(deep(), nn.Dropout(0.2)))
    x, y = batches(1)[0]
    net.compute_loss(net(x), y).backward()  # gradients that are accumulated
    net.network[0][1].eval()  # a layer that the user froze
    gradients = [p.grad.clone() for p in net.parameters()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    rng = torch.get_rng_state()
    before = x.clone()

    attack(start="clean", evaluate=evaluate).perturb(net, Perturbable(net, x, "Test"), against(y))
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(x, before)
    assert not x.requires_grad


def test_a_random_start_draws_what_it_needs_and_nothing_more():
    """Its numbers must not come again: dropout would draw its masks from them."""
    net, (x, y) = Tiny(deep()), batches(1)[0]
    torch.manual_seed(5)
    attack(evaluate=False).perturb(net, Perturbable(net, x, "Test"), against(y))
    after = torch.rand(3)
    torch.manual_seed(5)
    torch.empty(8, 4).uniform_(-0.3, 0.3)
    assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize("evaluate", [True, False])
def test_the_mode_in_which_the_network_is_attacked(evaluate):
    modes = []

    class Spy(Tiny):
        def forward(self, x):
            modes.append((self.training, self.network[3].training))
            return super().forward(x)

    net, (x, y) = Spy(deep()), batches(1)[0]
    attack(steps=2, evaluate=evaluate).perturb(net, Perturbable(net, x, "Test"), against(y))
    assert modes == [(True, not evaluate)] * 2


def test_it_is_the_student_that_is_attacked():
    class Net(EMATeacherMixin, Tiny):
        pass

    net, (x, y) = Net(smooth(), ema_teacher_decay=0.9), batches(1)[0]
    net.configure_model()
    nn.init.zeros_(net.ema_teacher.network[2].weight)  # such a teacher would have no slope
    delta = attack(start="clean").perturb(net, Perturbable(net, x, "Test"), against(y))
    assert (delta[0] != 0).all()


class Images(Tiny):
    """Images ``(pixel - mean) / std``; undoes that first if ``raw``."""

    def __init__(self, mean, std, raw):
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(50, 6), nn.Tanh(), nn.Linear(6, 3)))
        self.normalize = Normalize(mean, std)
        self.raw, (self.m, self.s) = raw, (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))

    def forward(self, x):
        return super().forward(x if self.raw else x * self.s + self.m)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_model_of_normalised_images_is_attacked_like_one_of_pixels(norm):
    mean, std = (0.3, 0.6), (0.2, 0.7)
    torch.manual_seed(0)
    pixels, y = torch.rand(8, 2, 5, 5), torch.randint(3, (8,))
    raw, normalised = Images((0.0, 0.0), (1.0, 1.0), True), Images(mean, std, False)
    normalised.network.load_state_dict(raw.network.state_dict())
    moved = []
    for net, x in [(raw, pixels), (normalised, (pixels - normalised.m) / normalised.s)]:
        torch.manual_seed(1)
        (delta,) = attack(norm=norm, epsilon=0.2, steps=4).perturb(net, Perturbable(net, x, "Test"), against(y))
        moved.append((x + delta) * net.s + net.m)
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=1e-5)
    assert moved[0].min() > -1e-6
    assert moved[0].max() < 1 + 1e-6


@pytest.mark.parametrize(
    ("norm", "epsilon", "scale", "told"),
    [("linf", 8, True, 1), ("linf", 0.5, True, 0), ("l2", 8, True, 0), ("linf", 8, False, 0)],
)
def test_a_ball_that_holds_every_image_is_told_once(recwarn, norm, epsilon, scale, told):
    net, y = Images((0.3, 0.6), (0.2, 0.7), False), torch.randint(3, (8,))
    if not scale:
        del net.normalize
    for _ in range(2):
        attack(norm=norm, epsilon=epsilon).perturb(net, Perturbable(net, torch.rand(8, 2, 5, 5), "Test"), against(y))
    messages = [str(w.message) for w in recwarn]
    assert messages == told * [
        "Test: epsilon is 8, in pixels of [0, 1]: each image can become any other. Divide by 255 what is meant in grey "
        "levels of 0 to 255, as in 8 / 255 = 0.0314."
    ]


class DataModule:
    normalize = Normalize([0.5, 0.5], [0.1, 0.2])


class FakeTrainer:
    datamodule = DataModule()


def test_where_the_scale_of_pixels_comes_from(monkeypatch):
    told = []
    monkeypatch.setattr("lightning_tuning.mixins.attack.rank_zero_info", told.append)
    images, vectors = torch.zeros(2, 2, 3, 3), torch.zeros(2, 5)
    net = Tiny()
    assert scales_of(net, Perturbable(net, images, "TRADESMixin")) == [None]
    assert scales_of(net, Perturbable(net, images, "TRADESMixin")) == [None]
    assert told == [
        "TRADESMixin: epsilon has the unit of the inputs, which are not clipped to a range. For epsilon in pixels of "
        "[0, 1] set self.normalize, in the module or datamodule, to an object with the mean and std of each channel (0 "
        "and 1 for inputs that are not normalised)."
    ]
    net._trainer = FakeTrainer()
    assert scales_of(net, Perturbable(net, images, "Test")) == [((0.5, 0.5), (0.1, 0.2))]
    assert scales_of(net, Perturbable(net, {"image": images, "age": vectors}, "Test")) == [
        ((0.5, 0.5), (0.1, 0.2)),
        None,
    ]
    net.normalize = Normalize([0.0], [1.0])
    assert scales_of(net, Perturbable(net, images, "Test")) == [((0.0,), (1.0,))]
    net.normalize = nn.Identity()  # something else of that name
    assert scales_of(net, Perturbable(net, images, "Test")) == [((0.5, 0.5), (0.1, 0.2))]


def test_embeddings_have_no_pixels():
    net = Tiny(Tokens())
    net.normalize = Normalize([0.5], [0.5])
    assert scales_of(net, Perturbable(net, torch.randint(9, (2, 5)), "Test")) == [None]


def test_images_of_other_channels():
    net = Tiny()
    net.normalize = Normalize([0.5] * 3, [0.5] * 3)
    with pytest.raises(InvalidValueError) as caught:
        scales_of(net, Perturbable(net, torch.zeros(2, 1, 8, 8), "TRADESMixin"))
    assert str(caught.value) == (
        "TRADESMixin: normalize has 3 channels, but the images are [2, 1, 8, 8]. Set self.normalize, with one mean and "
        "std for each channel, in Tiny."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": -1}, "trades_epsilon is -1; it must be a number in [0, inf)."),
        ({"steps": 0}, "trades_steps is 0; it must be an integer of at least 1."),
        ({"step_size": 0}, "trades_step_size is 0; it must be a number in (0, inf)."),
        ({"norm": "l3"}, "trades_norm is 'l3'. It must be one of 'linf', 'l2'."),
    ],
)
def test_arguments(changes, message):
    with pytest.raises(InvalidValueError) as caught:
        attack(**changes)
    assert str(caught.value) == message


def test_an_output_without_a_gradient():
    class Cut(Tiny):
        def forward(self, x):
            return super().forward(x.detach())

    net, (x, y) = Cut(), batches(1)[0]
    with pytest.raises(InvalidValueError, match=r"^Test attacks the inputs, but the output has no gradient"):
        attack().perturb(net, Perturbable(net, x, "Test"), against(y))


class Layer(nn.Module):
    """A network's own normalisation, as torchvision's is."""

    mean, std = (0.5,), (0.25,)

    def forward(self, x):
        return (x - 0.5) / 0.25


class Inside(Tiny):
    """Takes pixels."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.normalize = Layer()

    def forward(self, x):
        return super().forward(self.normalize(x))


@pytest.mark.parametrize("technique", [AdversarialMixin, FreeAdversarialMixin, TRADESMixin])
def test_a_layer_of_the_network_tells_nothing_of_its_inputs(technique):
    with pytest.raises(InvalidValueError, match=r"Mixin: Net calls self\.normalize on its way to the logits"):
        fit(type("Net", (technique, Inside), {})(), batches(1))


@pytest.mark.parametrize("bases", [(Inside,), (EMATeacherMixin, Inside)])
def test_nor_does_it_under_robust_accuracy(bases):
    net = type("Net", bases, {})()
    with pytest.raises(InvalidValueError, match=r"RobustAccuracy: Net calls self\.normalize on its way"):
        fit(net, batches(1), val_data=batches(1), callbacks=[RobustAccuracy(0.1, steps=1)])
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_a_layer_that_is_applied_to_the_batch_tells_it():
    class Outside(AdversarialMixin, Tiny):
        def __init__(self):
            super().__init__()
            self.normalize = Layer()

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return self.normalize(batch[0]), batch[1]

    trainer = fit(Outside(), batches(1))
    assert 0.02 < trainer.callback_metrics["train/adversarial_perturbation_epoch"] < 0.032


def test_a_tuple_is_no_scale():
    with pytest.raises(InvalidValueError, match=r"normalize is \(0\.5, 0\.2\); it must be an object with .* mean"):
        PixelScale.of((0.5, 0.2))
