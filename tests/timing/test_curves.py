"""Shapes as text, number by number against torch's schedulers, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler as theirs

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.timing.curves import Curve
from lightning_tuning.timing.lr_scheduler import ScheduleLR
from lightning_tuning.timing.moments import PlainClock, level
from lightning_tuning.timing.shape_text import parse_shape
from lightning_tuning.timing.shapes import SHAPES

TOTAL, LR = 60, 0.3


def rates(make, steps=TOTAL, lr=LR, **settings):
    """The learning rate of each step under a scheduler of torch."""
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": lr / 10}], lr=lr)
    scheduler = make(optimizer, **settings)
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return [rate for pair in seen for rate in pair]


SAME = {
    "cosine": (theirs.CosineAnnealingLR, {"T_max": TOTAL}),
    "linear": (theirs.LinearLR, {"start_factor": 1.0, "end_factor": 0.0, "total_iters": TOTAL}),
    "linear(end=20%)": (theirs.LinearLR, {"start_factor": 1.0, "end_factor": 0.2, "total_iters": TOTAL}),
    "polynomial(3)": (theirs.PolynomialLR, {"power": 3, "total_iters": TOTAL}),
    "exponential(end=2%)": (theirs.ExponentialLR, {"gamma": 0.02 ** (1 / TOTAL)}),
    "step(7st, gamma=0.3)": (theirs.StepLR, {"step_size": 7, "gamma": 0.3}),
    "multi_step(10st, 0.5dur, 45st, gamma=0.2)": (theirs.MultiStepLR, {"milestones": [10, 30, 45], "gamma": 0.2}),
    "cosine_restarts(7st)": (theirs.CosineAnnealingWarmRestarts, {"T_0": 7}),
    "cosine_restarts(4st, growth=2)": (theirs.CosineAnnealingWarmRestarts, {"T_0": 4, "T_mult": 2}),
}


@pytest.mark.parametrize(
    ("in_shares", "in_steps"),
    [
        ("step(10%)", "step(10st)"),
        ("step(0.3ep)", "step(3st)"),
        ("multi_step(7%, 55%)", "multi_step(7st, 55st)"),
        ("cosine_restarts(7%)", "cosine_restarts(7st)"),
    ],
)
def test_a_share_that_is_a_whole_number_of_steps_is_that(in_shares, in_steps):
    """In floating point 3 * 0.1 * 100 and 0.55 * 100 are above 30 and 55."""
    values = [Curve(shape).preview(100, steps_per_epoch=10) for shape in (in_shares, in_steps)]
    assert values[0] == values[1]


@pytest.mark.parametrize("shape", SAME)
def test_each_rate_is_that_of_torchs_scheduler(shape):
    make, settings = SAME[shape]
    ours = rates(lambda optimizer: ScheduleLR(optimizer, TOTAL, shape))
    assert ours == pytest.approx(rates(make, **settings), rel=1e-9, abs=1e-15)


def test_an_absolute_end_is_torchs_eta_min():
    ours = rates(lambda optimizer: ScheduleLR(optimizer, TOTAL, "cosine(end=0.01)"))
    assert ours == pytest.approx(rates(theirs.CosineAnnealingLR, T_max=TOTAL, eta_min=0.01), rel=1e-9)


@pytest.mark.parametrize("rise", [0.3, 0.15, 0.5])
def test_one_cycle_and_its_momentum_are_torchs(rise):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=LR, momentum=0.9)
    scheduler = theirs.OneCycleLR(optimizer, max_lr=LR, total_steps=TOTAL, pct_start=rise)
    lrs, momenta = [], []
    for step in range(TOTAL):
        lrs.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        if step < TOTAL - 1:
            scheduler.step()
    assert Curve(f"one_cycle(rise={rise}dur)").preview(TOTAL, LR) == pytest.approx(lrs, rel=1e-9)
    momentum = Curve(f"one_cycle(rise={rise}dur, start=0.95, end=0.95)").preview(TOTAL, 0.85)
    assert momentum == pytest.approx(momenta, rel=1e-9)


def test_warmup_and_decay_of_two_schedulers_in_a_row():
    def made(optimizer):
        warm = theirs.LambdaLR(optimizer, lambda step: (step + 1) / 10)
        rest = theirs.CosineAnnealingLR(optimizer, T_max=TOTAL - 10)
        return theirs.SequentialLR(optimizer, [warm, rest], milestones=[10])

    ours = rates(lambda optimizer: ScheduleLR(optimizer, TOTAL, "cosine", warmup="10st"))
    assert ours == pytest.approx(rates(made), rel=1e-9)


def test_warmup_from_and_its_forms():
    linear = Curve("constant", warmup="4st", warmup_from="20%").preview(6, 10.0)
    assert linear == pytest.approx([4.0, 6.0, 8.0, 10.0, 10.0, 10.0])
    absolute = Curve("constant", warmup="4st", warmup_from=12.0).preview(6, 10.0)
    assert absolute == pytest.approx([11.5, 11.0, 10.5, 10.0, 10.0, 10.0])
    cosine = Curve("constant", warmup="cosine 4st").preview(4)
    assert cosine == pytest.approx([0.5 - 0.5 * (2**-0.5), 0.5, 0.5 + 0.5 * (2**-0.5), 1.0])
    sigmoid = Curve("constant", warmup="sigmoid 50%").preview(4)
    assert sigmoid == pytest.approx([2.718281828459045**-1.25, 1, 1, 1])


def test_milestones_count_from_the_runs_start_and_the_rest_from_the_warmup():
    assert Curve("step(5st, gamma=0.5)", warmup="2st").preview(11) == pytest.approx([0.5, *[1] * 4, *[0.5] * 5, 0.25])
    assert Curve("multi_step(50%, gamma=0.5)", warmup="2st").preview(6) == pytest.approx([0.5, 1, 1, 0.5, 0.5, 0.5])
    assert Curve("linear", warmup="2st").preview(6) == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])
    assert Curve("step", warmup="2st").preview(6) == pytest.approx([0.5, 1, 1, 1, 0.1, 0.01])
    assert Curve("inverse_sqrt", warmup="4st").preview(17)[16] == pytest.approx(0.5)


def test_wsd_falls_in_the_last_part():
    assert Curve("wsd(decay=40%)").preview(10) == pytest.approx([1] * 7 + [0.75, 0.5, 0.25])
    assert Curve("wsd(decay=4st, form=sqrt, end=0.2)", warmup="2st").preview(10, 2.0) == pytest.approx(
        [1, 2, 2, 2, 2, 2, 2, 1.1, 2 - 1.8 * 0.5**0.5, 2 - 1.8 * 0.75**0.5]
    )


def test_until_ends_a_shape_early():
    assert Curve("linear(end=20%)", until="50%").preview(8, 10.0) == pytest.approx([10, 8, 6, 4, 2, 2, 2, 2])
    assert Curve("wsd(decay=2st)", until="4st").preview(6) == pytest.approx([1, 1, 1, 0.5, 0, 0])


def test_units_need_their_lengths():
    values = Curve("multi_step(2ep, 60smp, gamma=0.5)").preview(8, steps_per_epoch=2, samples_per_step=10)
    assert values == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]
    with pytest.raises(InvalidValueError, match="The duration 2ep needs steps_per_epoch"):
        Curve("multi_step(2ep)").preview(8)
    assert PlainClock(8).total == 8


def test_a_plateau_drops_by_gamma_and_stops_at_its_end():
    curve = Curve("plateau(val/acc, mode=max, gamma=0.5, end=20%)", warmup="2st")
    values = [curve.value(1.0, 2, PlainClock(9), drops=drops) for drops in range(4)]
    assert values == pytest.approx([1, 0.5, 0.25, 0.2])
    assert curve.value(1.0, 0, PlainClock(9), drops=3) == 0.5


def test_every_shape_takes_a_warmup_but_the_one_that_has_its_own():
    text = {"multi_step": "multi_step(50%)", "cosine_restarts": "cosine_restarts(3st)"}
    for name in SHAPES:
        if name != "one_cycle":
            assert Curve(text.get(name, name), warmup="4st").preview(10)[:4] == [0.25, 0.5, 0.75, 1.0]


def test_the_scheduler_of_torch_resumes_within_the_run():
    def made():
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=LR)
        return optimizer, ScheduleLR(optimizer, 10, "cosine(end=1%)", warmup="3st")

    def run(optimizer, scheduler, steps):
        seen = []
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return seen

    straight = run(*made(), 10)
    first, schedule = made()
    head = run(first, schedule, 4)
    second, again = made()
    second.load_state_dict(first.state_dict())
    again.load_state_dict(schedule.state_dict())
    assert head + run(second, again, 6) == straight
    assert all(isinstance(value, (int, float, list, bool)) for value in schedule.state_dict().values())


def test_a_tensor_learning_rate_is_set_in_place():
    rate = torch.tensor(LR)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    schedule = ScheduleLR(optimizer, 1, "linear", warmup="2st")
    schedule.set_total(4)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(LR / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "cosin"}, r"shape is 'cosin'; did you mean 'cosine'\? It must be one of 'constant', .*settings as"),
        ({"shape": 3}, r"shape is 3"),
        ({"shape": "cosine("}, r"shape is 'cosine\('"),
        ({"shape": "cosine(end=1%, start=3)"}, r"cosine has no setting 'start'\. It has: end\."),
        ({"shape": "constant(3)"}, r"write the settings of constant by name: it has none"),
        ({"shape": "polynomial(2, 0)"}, r"write the settings of polynomial by name: power, end"),
        ({"shape": "step(5, gamma=0.1)"}, r"step\(every=\.\.\.\) is 5; write a number and its unit"),
        ({"shape": "multi_step"}, r"multi_step needs the points where it drops"),
        ({"shape": "multi_step(30)"}, r"multi_step\(\.\.\.\) is '30'"),
        ({"shape": "step(5st, gamma=-1)"}, r"step\(gamma=\.\.\.\) is -1"),
        ({"shape": "cosine(end=-1%)"}, r"cosine\(end=\.\.\.\) is '-1%'; it must be a number of at least 0, or a share"),
        ({"shape": "exponential(end=0)"}, r"never gets to 0"),
        ({"shape": "cosine_restarts"}, r"cosine_restarts needs the length of its first cycle"),
        ({"shape": "cosine_restarts(3st, growth=0.5)"}, r"growth=\.\.\.\) is 0\.5"),
        ({"shape": "wsd(form=root)"}, r"wsd\(form=\.\.\.\) is 'root'"),
        ({"shape": "plateau(patience=1.5)"}, r"plateau\(patience=\.\.\.\) is 1\.5"),
        ({"shape": "plateau(mode=low)"}, r"plateau\(mode=\.\.\.\) is 'low'"),
        ({"shape": "plateau(gamma=1)"}, r"plateau\(gamma=\.\.\.\) is 1"),
        ({"warmup": "5"}, r"warmup is '5'; write a number and its unit"),
        ({"warmup": 5}, r"warmup is 5; write"),
        ({"shape": "cosine(end=1%"}, r"shape is 'cosine\(end=1%', whose brackets do not match"),
        ({"shape": "cosine(end=1%, end=2%)"}, "which has end twice; write it once"),
        ({"warmup": "square 5ep"}, r"warmup is 'square 5ep'"),
        ({"warmup": "0st"}, r"warmup is '0st'; write a number above 0"),
        ({"warmup_from": 0.1}, r"warmup_from is 0\.1, but there is no warm-up"),
        ({"warmup": "5ep", "warmup_from": True}, r"warmup_from is True"),
        ({"shape": "one_cycle", "warmup": "5ep"}, r"one_cycle has a rise of its own"),
        ({"shape": "constant", "until": "5ep"}, r"until is '5ep', but constant has no end"),
        ({"shape": "step(5ep)", "until": "5ep"}, r"until is '5ep', but step\(5ep\) has no end"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        Curve(**arguments)


def test_settings_are_read_as_written():
    assert parse_shape(" multi_step( 10ep ,20ep , gamma = 0.2 ) ").at == ("10ep", "20ep")
    shape = parse_shape("plateau(val/loss, patience=3, threshold=1e-3)")
    assert (shape.monitor, shape.patience, shape.threshold) == ("val/loss", 3, 1e-3)
    assert level("end", "50%").of(3.0) == 1.5
    with pytest.raises(InvalidValueError, match="ScheduleLR knows no metric"):
        ScheduleLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), 10, "plateau")


@pytest.mark.parametrize(
    ("curve", "unreached"),
    [
        (Curve("cosine", warmup="9st"), ["the end of the warm-up at 9st"]),
        (Curve("cosine", warmup="8st"), []),
        (Curve("multi_step(4st, 8st, 2ep)"), ["the drop at 8st", "the drop at 2ep"]),
        (Curve("step(8st)"), ["the drop at 8st"]),
        (Curve("step"), []),
        (Curve("cosine_restarts(20st)"), []),
    ],
)
def test_what_the_run_does_not_reach(curve, unreached):
    assert curve.unreached(PlainClock(8, steps_per_epoch=4)) == unreached


def test_a_shape_that_ends_within_the_warmup_is_refused():
    with pytest.raises(InvalidValueError, match="until is '4st', but the warm-up of 5st is not over then"):
        Curve("cosine", warmup="5st", until="4st").unreached(PlainClock(8))
