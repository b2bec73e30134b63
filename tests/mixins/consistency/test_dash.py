import math

import numpy as np
import pytest
import torch

from lightning_tuning import DashMixin, SAMMixin
from lightning_tuning.errors import InvalidValueError
from tests.contract.test_contract import Overflow
from tests.mixins.tiny import NUM_CLASSES, Tiny, batches, fit

from .pseudo import confident, data, run


class Net(DashMixin, Tiny):
    pass


class SharpNet(SAMMixin, DashMixin, Tiny):
    pass


SETTINGS = {
    **{"dash_weight": 0.7, "dash_scale": 1.01, "dash_decay": 2.2, "dash_floor": 0.4, "dash_temperature": 0.6},
    **{"dash_warmup": "2 steps", "dash_interval": "2 steps"},
}


def losses(steps):
    """Algorithm 1: a warm-up of 2 steps, then a threshold that falls every 2 steps."""
    first, second = (step.labeled_loss for step in steps[:2])
    yield from (first, second)
    initial = (0.9 * first + second) / 1.9
    hard, shares = [], []
    for k, step in enumerate(steps[2:]):
        rho = max(1.01 * 2.2 ** -(k // 2) * initial, 0.4)
        q = step.q
        weights = [float(-math.log(row.max()) <= rho) for row in q]
        sharp = q ** (1 / 0.6) / (q ** (1 / 0.6)).sum(1, keepdims=True)
        hard.append(rho == 0.4)
        labels = np.eye(NUM_CLASSES)[q.argmax(1)] if rho == 0.4 else sharp
        yield step.labeled_loss + 0.7 * step.unlabeled_loss(weights, labels)
        shares.append(np.mean(weights))
    assert 0 < min(shares) < 1
    assert any(hard)
    assert not all(hard)


def test_every_step_of_a_run():
    torch.manual_seed(0)
    steps = run(Net(confident(), **SETTINGS), data(10))
    assert [step.loss for step in steps] == pytest.approx([*losses(steps)], rel=1e-6)


def test_a_share_of_the_run_and_epochs():
    torch.manual_seed(0)
    shares = {"dash_warmup": "10%", "dash_interval": "10%"}  # of 20 steps, 10 an epoch
    torch.manual_seed(0)
    steps = run(Net(confident(), **{**SETTINGS, **shares}), data(10), max_epochs=2)
    torch.manual_seed(0)
    epochs = {"dash_warmup": "0.2 epochs", "dash_interval": "0.2 epochs"}
    same = run(Net(confident(), **{**SETTINGS, **epochs}), data(10), max_epochs=2)
    expected = [*losses(steps[:10])]
    assert [step.loss for step in steps[:10]] == pytest.approx(expected, rel=1e-6)
    assert [step.loss for step in same] == [step.loss for step in steps]


def test_the_warmup_leaves_the_unlabelled_inputs_alone():
    net = Net(confident(), **{**SETTINGS, "dash_warmup": "10 steps"})
    calls = []
    net.network.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    fit(net.double(), data(2), precision="64-true")
    assert calls == [4, 4]


def test_the_warmup_refuses_a_batch_of_another_form():
    with pytest.raises(InvalidValueError, match="DashMixin needs batches"):
        fit(Net(confident(), **SETTINGS), batches(1))


def test_an_accumulation_window_counts_once_and_so_does_sam():
    made = data(4)
    torch.manual_seed(0)
    net = Net(confident(), **{**SETTINGS, "dash_warmup": "1 step"}).double()
    sharp = SharpNet(confident(), sam_rho=0.1, **{**SETTINGS, "dash_warmup": "1 step"}).double()
    sharp.load_state_dict(net.state_dict())
    expected = np.mean([net.compute_loss(net(x), ids).item() for x, ids in (batch["labeled"] for batch in made)])
    for module in (net, sharp):
        fit(module, made, precision="64-true", accumulate_grad_batches=4)
        assert module.dash_state.mass.item() == pytest.approx(0.1, abs=1e-7)
        assert (module.dash_state.loss / module.dash_state.mass).item() == pytest.approx(expected, rel=1e-6)


def test_a_skipped_step_of_the_warmup_does_not_count():
    net = Net(confident(), **SETTINGS)
    made = [
        {
            "labeled": (batch["labeled"][0].float(), batch["labeled"][1]),
            "unlabeled": {"weak": batch["unlabeled"]["weak"].float(), "strong": batch["unlabeled"]["strong"].float()},
        }
        for batch in data(3)
    ]
    overflow = Overflow(step=1)
    fit(net, made, precision="16-mixed", callbacks=[overflow])
    assert torch.equal(overflow.before["dash_state.mass"], overflow.after["dash_state.mass"])
    assert torch.isfinite(net.dash_state.threshold)


def test_a_step_that_fails_leaves_no_later_loss_to_be_observed():
    class Fails(Tiny):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("the host's own")

    class FailsNet(DashMixin, Fails):
        pass

    net = FailsNet(confident(), **SETTINGS).double()
    with pytest.raises(RuntimeError, match="the host's own"):
        fit(net, data(1), precision="64-true")
    net.compute_loss(torch.zeros(2, 3), torch.tensor([0, 1]))
    net.dash_state.commit()
    assert net.dash_state.mass == 0


def test_terms():
    torch.manual_seed(0)
    metrics = fit(Net(confident(), **SETTINGS).double(), data(3), precision="64-true").callback_metrics
    assert {f"train/dash{part}_epoch" for part in ("", "_share", "_precision", "_threshold")} <= metrics.keys()


@pytest.mark.parametrize(
    ("name", "value", "interval"),
    [
        ("dash_weight", -1.0, "[0, inf)"),
        ("dash_scale", 0.5, "[1, inf)"),
        ("dash_decay", 1.0, "(1, inf)"),
        ("dash_floor", -0.1, "[0, inf)"),
        ("dash_temperature", 0.0, "(0, inf)"),
    ],
)
def test_a_value_out_of_range(name, value, interval):
    with pytest.raises(InvalidValueError) as caught:
        Net(**{name: value})
    assert str(caught.value) == f"{name} is {value}; it must be a number in {interval}."


@pytest.mark.parametrize("value", ["1", "linear 1%", "0 steps", 5])
def test_a_length_that_is_none(value):
    with pytest.raises(InvalidValueError, match=f"^dash_warmup is {value!r}; write a number.* and its unit: '5ep'"):
        Net(dash_warmup=value)


def test_a_length_beyond_the_run():
    with pytest.raises(InvalidValueError, match=r"^dash_warmup is '200%'; the whole run is '1dur' or '100%'"):
        Net(dash_warmup="200%")
