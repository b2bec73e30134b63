"""The sentences: at which numbers each comes, since when, how often, and with what advice."""

from __future__ import annotations

import math

import pytest

from lightning_tuning.callbacks._health_report import Layer, Limits, Reading, Report

LIMITS = Limits(window=3, max_dead=0.5, max_saturated=0.5, min_variation=0.01, max_ratio=1000.0, max_growth=100.0)


def layers(kind, depth=3):
    """Linear layers with an activation between each two."""
    made = []
    for i in range(depth):
        made.append(Layer(f"linear{i}", "Linear", False, True))
        if i < depth - 1:
            made.append(Layer(f"act{i}", kind, True, False))
    return made


def healthy(kind="ReLU", depth=3, **changes):
    """The values of a network that nothing is wrong with, and those given, ``act0__dead=0.7``."""
    values = {"gradient_norm": 1.0, "gradient_ratio": 1.0}
    for layer in layers(kind, depth):
        values |= {f"mean/{layer.name}": 0.0, f"std/{layer.name}": 1.0, f"variation/{layer.name}": 0.5}
        if layer.has_weights:
            values[f"gradient/{layer.name}"] = 0.1
        else:
            values |= {f"pre_std/{layer.name}": 1.0, f"dead/{layer.name}": 0.0, f"saturated/{layer.name}": 0.0}
    for name, value in changes.items():
        where, _, metric = name.rpartition("__")
        values[f"{metric}/{where}" if where else metric] = value
    return values


class Looks:
    """Looks at steps 0, 10, 20, ... in turn."""

    def __init__(self, kind="ReLU", depth=3, limits=LIMITS):
        self.report, self.kind, self.depth = Report(limits), kind, depth
        self.series, self.step = {}, 0

    def __call__(self, times=1, broken=(), half=(), **changes):
        told = []
        for _ in range(times):
            values = healthy(self.kind, self.depth, **changes)
            reading = Reading(self.step, layers(self.kind, self.depth), values, broken, half)
            told += self.report.examine(reading, self.series)
            for name, value in values.items():
                self.series.setdefault(name, []).append(value)
            self.step += 10
        return told


def test_nothing_is_said_of_a_healthy_network():
    assert Looks()(10) == []
    assert Looks("Sigmoid")(10) == []


def test_dead_units_are_told_as_old_as_the_window():
    looks = Looks()
    assert looks(40) == []
    assert looks(act1__dead=0.5) == []
    (sentence,) = looks(act1__dead=0.84)
    assert sentence == (
        "act1 (ReLU): 84% of the units have been zero for every sample since step 390; try a lower learning rate, "
        "warmup_steps or trainer.gradient_clip_val, or take activation_name: leaky_relu, whose slope is nowhere zero."
    )


def test_units_that_were_dead_from_the_start_ask_for_other_weights():
    looks = Looks("GELU")
    (sentence,) = looks(2) + looks(act0__dead=0.7, act1__dead=0.9)
    assert sentence.startswith("act1 (GELU): 90% of the units have been switched off for every sample since step 0")
    assert "(likewise act0 (GELU)); draw other weights (init_method: kaiming_normal)" in sentence


def test_each_finding_is_told_once_and_again_when_it_is_clearly_worse():
    looks = Looks()
    assert len(looks(act0__dead=0.55)) == 1
    assert looks(20, act0__dead=0.75) == []
    (again,) = looks(act0__dead=0.8)
    assert again.startswith("act0 (ReLU): 80% of the units have been zero for every sample since step 0;")
    assert looks(20, act0__dead=1.0) == []
    (other,) = looks(act0__dead=1.0, act1__dead=0.6)
    assert other.startswith("act1 (ReLU): 60%")
    assert "act0" not in other


@pytest.mark.parametrize("kind", ["Tanh", "ELU"])
def test_saturation_has_to_last_for_the_window(kind):
    looks = Looks(kind)
    bad = {"act0__saturated": 0.7, "act1__saturated": 0.6, "act0__pre_std": 4.56}
    assert looks(2, **bad) == looks(act0__saturated=0.5) == looks(2, **bad) == []
    (sentence,) = looks(**bad)
    other = "leaky_relu" if kind == "ELU" else "relu"
    assert sentence == (
        f"act0 ({kind}): 70% of the outputs have been saturated, where the slope is next to zero, since step 30; its "
        f"inputs have a standard deviation of 4.6 (likewise act1 ({kind})); try a lower learning rate or "
        "trainer.gradient_clip_val, keep the weights small (max_norm_bound), put a norm layer in front of it, or take "
        f"activation_name: {other}."
    )
    assert "draw smaller weights (init_method: xavier_normal)" in Looks(kind)(3, **bad)[0]


def test_the_last_activation_may_be_saturated_and_so_may_a_softmax():
    reading = Reading(
        0,
        [
            Layer("a", "Linear", False, True),
            Layer("soft", "Softmax", True, False),
            Layer("b", "Linear", False, True),
            Layer("out", "Sigmoid", True, False),
        ],
        {"saturated/out": 1.0, "saturated/soft": 1.0},
    )
    report = Report(LIMITS)
    assert not any(report.examine(reading, {}) for _ in range(5))


def test_outputs_that_hardly_depend_on_the_input():
    looks = Looks("Sigmoid")
    bad = {"act0__variation": 0.0099, "act1__variation": 1e-6, "linear2__variation": 1e-7}
    assert looks(2, **bad) == []
    (sentence,) = looks(**bad)
    assert sentence == (
        "act0 (Sigmoid): the outputs have hardly depended on the input since step 0, by 0.0099 of their size (likewise "
        "act1 (Sigmoid)); take activation_name: relu with init_method: kaiming_normal, or put a norm layer in front of "
        "each."
    )
    assert looks(10, **(bad | {"act0__variation": 0.001})) == []
    assert len(looks(3, **(bad | {"act0__variation": 0.00009}))) == 1
    (sentence,) = Looks()(3, **(bad | {"act0__variation": 0.011}))
    assert sentence.startswith("act1 (ReLU): the outputs have hardly depended on the input since step 0, by 1e-06 of")
    assert sentence.endswith("; put norm layers in front of the activations, or draw the weights by init_method: lsuv.")


def test_a_gate_whose_outputs_hardly_depend_on_the_input_is_none_that_loses_it():
    assert Looks("Sigmoid")(5, act0__variation=0.001, linear2__variation=0.001) == []
    assert Looks("Sigmoid")(5, act0__variation=0.001, act1__variation=0.001, linear2__variation=0.011) == []


def test_small_attentions_are_no_sign_of_a_fading_signal():
    assert Looks("Softmax", depth=4)(5, act1__std=1e-5, act1__variation=0.0) == []


def test_a_gradient_that_vanishes_towards_the_first_layer():
    bad = {"gradient_ratio": 0.00099, "linear0__gradient": 0.000099, "linear2__gradient": 0.1}
    assert Looks("Sigmoid")(5, gradient_ratio=0.0011) == []
    looks = Looks("Sigmoid")
    (sentence,) = looks() + looks(3, **bad)
    assert sentence == (
        "The gradient has vanished towards the first layer since step 10: the RMS of the weight gradient is 9.9e-05 in "
        "linear0 (Linear) against 1.0e-01 in linear2 (Linear); each of the 2 Sigmoid layers between them multiplies it "
        "by a slope of at most 1/4: take activation_name: relu with init_method: kaiming_normal, or add norm layers or "
        "residual connections."
    )
    assert looks(gradient_ratio=1.1e-5) == []
    assert len(looks(gradient_ratio=0.9e-5)) == 1
    assert "2 Tanh layers between them multiplies it by a slope of at most 1:" in Looks("Tanh")(3, **bad)[0]
    assert Looks()(3, **bad)[0].endswith(
        "; draw the weights by init_method: lsuv, or add norm layers or residual connections."
    )
    dead, vanished = Looks()(3, **bad, act1__dead=1.0)
    assert "dead" not in dead
    assert vanished.endswith("; dead units between them let none through: take activation_name: leaky_relu.")
    assert "is 0.0e+00 in linear0" in Looks()(3, gradient_ratio=0.0, linear0__gradient=0.0)[0]


def test_a_gradient_that_explodes_towards_the_first_layer():
    bad = {"gradient_ratio": 1001.0, "linear0__gradient": 100.1}
    looks = Looks()
    assert looks(2, **bad) == []
    (sentence,) = looks(**bad)
    assert sentence == (
        "The gradient has exploded towards the first layer since step 0: the RMS of the weight gradient is 1.0e+02 in "
        "linear0 (Linear) against 1.0e-01 in linear2 (Linear); normalize the inputs, draw the weights by init_method: "
        "lsuv, add norm layers, or clip (trainer.gradient_clip_val)."
    )


@pytest.mark.parametrize(("size", "word"), [(1001.0, "grown"), (0.000999, "shrunk")])
def test_activations_that_grow_or_shrink_with_depth(size, word):
    looks = Looks(depth=4)
    assert looks(2, act2__std=size) == []
    (sentence,) = looks(act2__std=size)
    assert sentence == (
        f"The activations have {word} with depth since step 0: their RMS is 1.0e+00 behind act0 (ReLU) and {size:.1e} "
        "behind act2 (ReLU); draw the weights by init_method: lsuv, or put norm layers in front of the activations."
    )
    assert Looks(depth=4)(5, act2__std=0.0, linear3__std=1e9) == []


def test_a_gradient_norm_that_grows_by_leaps_is_told_at_once():
    looks = Looks()
    looks(5)
    assert looks(gradient_norm=100.0) == []
    (sentence,) = looks(gradient_norm=260.0)
    assert sentence == (
        "The gradient explodes: its norm is 2.6e+02 at step 60, 260 times what it was; lower the learning rate, let "
        "it rise by warmup_steps, or clip the gradient (trainer.gradient_clip_val, or the callback AutoClip)."
    )
    assert looks(gradient_norm=2.5e4) == []
    assert len(looks(gradient_norm=2.7e4)) == 1


def test_growth_is_measured_by_the_larger_of_the_median_and_the_first_look():
    fallen = Looks()
    fallen(1, gradient_norm=1.0)
    fallen(9, gradient_norm=1e-5)
    assert fallen(gradient_norm=99.0) == []
    assert len(fallen(gradient_norm=101.0)) == 1
    risen = Looks()
    risen(1, gradient_norm=1.0)
    risen(9, gradient_norm=50.0)
    assert risen(gradient_norm=4999.0) == []
    assert len(risen(gradient_norm=5001.0)) == 1
    new = Looks()
    assert new() + new(gradient_norm=1e9) == []  # one look is no measure, two are
    assert len(new(gradient_norm=1e12)) == 1


def test_activations_that_explode():
    looks = Looks()
    looks(3)
    (sentence,) = looks(act0__mean=120.0, act0__std=160.0, act1__std=101.0)
    assert sentence == (
        "act0 (ReLU): the activations explode: their RMS is 2.0e+02 at step 30, 200 times what it was (likewise act1 "
        "(ReLU)); lower the learning rate, let it rise by warmup_steps, or clip the gradient "
        "(trainer.gradient_clip_val), bound the weights (max_norm_bound), or add norm layers."
    )
    assert looks(linear0__std=1e6) == []  # what follows it is fine


NAN = {"linear1__std": math.nan, "act1__std": math.nan, "linear2__std": math.inf, "gradient_norm": math.nan}


def test_the_first_outputs_that_are_not_finite():
    looks = Looks()
    looks(2)
    (sentence,) = looks(**NAN, act1__dead=1.0)  # and nothing else is said of such a look
    assert sentence == (
        "The outputs of linear1 (Linear) are not finite at step 20, though its weights and the outputs before are; "
        "the network has diverged: lower the learning rate, let it rise by warmup_steps, or clip the gradient "
        "(trainer.gradient_clip_val)."
    )
    assert looks(3, **NAN, act0__dead=1.0) == []  # what else is wrong follows from it
    assert looks.report.steps == [0, 10]
    (sentence,) = Looks()(half=["linear1"], **NAN)
    assert sentence.endswith(
        "; what it computes overflows fp16: train in bf16-mixed, or put a norm layer in front of it."
    )
    (sentence,) = Looks()(broken=["linear1", "linear2"], **NAN)
    assert sentence == (
        "The outputs of linear1 (Linear) are not finite at step 0, for an earlier step made its weights so; lower the "
        "learning rate, let it rise by warmup_steps, or clip the gradient (trainer.gradient_clip_val)."
    )
    assert "diverged" in Looks()(broken=["linear2"], half=["linear2"], **NAN)[0]
    (sentence,) = Looks()(**NAN, linear0__mean=math.inf)
    assert sentence.endswith("though its weights are; look for NaN and infinite values in the inputs.")


def test_layers_with_weights_stand_for_activations_that_cannot_be_seen():
    report, values = Report(LIMITS), {"variation/a": 0.5, "variation/b": 0.001, "variation/c": 0.0}
    weights = [Layer(name, "Linear", False, True) for name in "abc"]
    told = [report.examine(Reading(step, weights, values), {}) for step in range(3)]
    assert [len(sentences) for sentences in told] == [0, 0, 1]
    assert told[-1][0].startswith("b (Linear): the outputs have hardly depended on the input since step 0")


def test_the_state_goes_on_where_it_was():
    bad = {"act0__dead": 0.6, "act1__variation": 0.001, "linear2__variation": 0.001}
    straight, first, second = Looks(), Looks(), Looks()
    expected = straight(5, **bad)
    told = first(2, **bad)
    second.report.load(first.report.state())
    second.series, second.step = first.series, first.step
    told += second(3, **bad)
    assert len(expected) == 2
    assert told == expected
    assert second.report.state() == straight.report.state()


def test_a_gradient_of_exactly_zero_is_told_once():
    (sentence,) = Looks("ReLU")(20, gradient_ratio=0.0, linear0__gradient=0.0)
    assert sentence.startswith("The gradient has vanished towards the first layer since step 0")
