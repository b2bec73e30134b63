"""The teacher's average against timm's, ema-pytorch's and torch-ema's, over a training run."""

import copy

import pytest
import torch

from lightning_tuning import EMATeacherMixin
from lightning_tuning.functional import ema_update_, gamma_of, power_decay, power_shares
from tests.mixins.tiny import Tiny, batches, convolution, fit

pytestmark = pytest.mark.references
DECAY = 0.9


class Net(EMATeacherMixin, Tiny):
    pass


class Followed(Net):
    """Hands its network to others' averages after each optimizer step."""

    followers = ()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        super().on_train_batch_end(outputs, batch, batch_idx)
        for follow in self.followers:
            follow(self.network)


def run(net, *followers):
    net.followers = followers
    fit(net, batches(6, shape=(2, 5, 5)))
    return net.ema_teacher.network


def net_of(**settings):
    torch.manual_seed(0)
    return Followed(convolution(), ema_teacher_decay=DECAY, **settings)


def assert_averages(ours, theirs, integers=True):
    expected = dict(theirs.state_dict())
    for name, value in ours.state_dict().items():
        if integers or value.is_floating_point():
            torch.testing.assert_close(value, expected[name], msg=lambda m, n=name: f"{n}: {m}")


def test_timm_averages_weights_and_buffers(timm_file):
    net = net_of(ema_teacher_warmup=False)
    theirs = timm_file("utils/model_ema.py").ModelEmaV3(copy.deepcopy(net.network), decay=DECAY)
    assert_averages(run(net, theirs.update), theirs.module)


def test_timm_copies_buffers_if_told_to(timm_file):
    net = net_of(ema_teacher_warmup=False, ema_teacher_buffers="copy")
    theirs = timm_file("utils/model_ema.py").ModelEmaV3(copy.deepcopy(net.network), decay=DECAY, exclude_buffers=True)
    assert_averages(run(net, theirs.update), theirs.module)


def test_ema_pytorch(package):
    net = net_of(ema_teacher_warmup=False)
    theirs = package("ema_pytorch").EMA(
        net.network, beta=DECAY, update_every=1, update_after_step=-2, power=1e9, include_online_model=False
    )
    theirs.update()  # the first makes their copy
    theirs.initted.fill_(True)
    # It leaves integer buffers as they were in the beginning.
    assert_averages(run(net, lambda network: theirs.update()), theirs.ema_model, integers=False)


def test_torch_ema_with_its_warm_up_left_out(package):
    net = net_of(ema_teacher_warmup=False)
    theirs = package("torch_ema").ExponentialMovingAverage(net.network.parameters(), decay=DECAY, use_num_updates=False)
    ours = run(net, lambda network: theirs.update(network.parameters()))
    for parameter, expected in zip(ours.parameters(), theirs.shadow_params, strict=True):
        torch.testing.assert_close(parameter.data, expected)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_ema_pytorchs_power_average(package, sigma_rel):
    """It counts the first step twice: its update k has the decay of update k + 1."""
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    theirs = package("ema_pytorch.post_hoc_ema").KarrasEMA(net, sigma_rel=sigma_rel, update_every=1)
    ours = [torch.zeros_like(p) for p in net.parameters()]
    for step in range(1, 31):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        for update in (1, 2) if step == 1 else (step + 1,):
            ema_update_(ours, [p.detach() for p in net.parameters()], power_decay(update, gamma_of(sigma_rel)))
        theirs.update()
    for average, expected in zip(ours, theirs.ema_model.parameters(), strict=True):
        torch.testing.assert_close(average, expected.detach())


def test_ema_pytorchs_weights_of_stored_averages(package):
    stored = [(t, g) for t in range(10, 101, 10) for g in (gamma_of(0.05), gamma_of(0.1))]
    times, gammas = torch.tensor(stored, dtype=torch.float64).T
    for sigma_rel in (0.07, 0.15):
        gamma = gamma_of(sigma_rel)
        wanted = torch.tensor([100.0]), torch.tensor([gamma], dtype=torch.float64)
        expected = package("ema_pytorch.post_hoc_ema").solve_weights(times, gammas, *wanted)[:, 0]
        torch.testing.assert_close(power_shares(stored, (100, gamma)), expected, rtol=1e-5, atol=1e-6)
