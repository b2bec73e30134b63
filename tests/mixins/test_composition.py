import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_tuning import (
    EMATeacherMixin,
    FixMatchMixin,
    L1Mixin,
    LabelSmoothingMixin,
    MixupMixin,
    RDropMixin,
    SAMMixin,
    compose,
)
from lightning_tuning.errors import CompositionError, InvalidValueError
from lightning_tuning.mixins import STAGES, TECHNIQUES
from tests.mixins.tiny import Tiny, batches, fit

Composed = compose(Tiny, L1Mixin, MixupMixin, SAMMixin, name="Composed")


def refused(name, *bases, **namespace):
    """The message with which the class statement fails."""
    with pytest.raises(CompositionError) as caught:
        type(name, bases, namespace)
    return str(caught.value)


def written(message, *classes):
    """The class that the message's last words write."""
    namespace = {c.__name__: c for c in classes}
    exec(message[message.index("class ") :] + " pass", namespace)
    return namespace["Net"]


# Order


def test_wrong_order():
    message = refused("Net", RDropMixin, MixupMixin, L1Mixin, SAMMixin, Tiny)
    assert message == (
        "MixupMixin (stage 'mix') must stand left of RDropMixin (stage 'repeat'). "
        "Write: class Net(SAMMixin, MixupMixin, RDropMixin, L1Mixin, Tiny):"
    )
    made = written(message, SAMMixin, MixupMixin, RDropMixin, L1Mixin, Tiny)
    assert [c.__name__ for c in made.__bases__] == ["SAMMixin", "MixupMixin", "RDropMixin", "L1Mixin", "Tiny"]


def test_two_stages_apart_with_one_between():
    message = refused("Net", LabelSmoothingMixin, L1Mixin, SAMMixin, Tiny)
    assert message == (
        "SAMMixin (stage 'optimizer') must stand left of LabelSmoothingMixin (stage 'loss'). "
        "Write: class Net(SAMMixin, LabelSmoothingMixin, L1Mixin, Tiny):"
    )


def test_the_whole_stack_in_stage_order_is_accepted_and_its_stages_are_known():
    made = type("Net", (*TECHNIQUES, Tiny), {})
    assert list(dict.fromkeys(t.stage for t in TECHNIQUES if t.stage)) == list(STAGES)
    assert issubclass(made, Tiny)


@pytest.mark.parametrize("place", range(3))
def test_a_mixin_without_a_stage_stands_anywhere_left_of_the_host(place):
    mixins = [SAMMixin, MixupMixin]
    mixins.insert(place, L1Mixin)
    type("Net", (*mixins, Tiny), {})


# The host and the mixins


def test_host_on_the_left():
    message = refused("Net", Tiny, SAMMixin)
    assert message == ("SAMMixin stands right of Tiny, where it would do nothing. Write: class Net(SAMMixin, Tiny):")
    assert written(message, SAMMixin, Tiny).__mro__[1] is SAMMixin


def test_host_between_two_mixins():
    message = refused("Net", SAMMixin, Tiny, MixupMixin)
    assert message == (
        "MixupMixin stands right of Tiny, where it would do nothing. Write: class Net(SAMMixin, MixupMixin, Tiny):"
    )


def test_a_mixin_without_a_host():
    with pytest.raises(CompositionError) as caught:
        SAMMixin()
    assert str(caught.value) == (
        "SAMMixin is a mixin without a host. Write: class Net(SAMMixin, MyLightningModule): ..."
    )


@pytest.mark.parametrize("name", ["training_step", "optimizer_step", "compute_loss"])
def test_a_method_of_the_composed_class_that_hides_a_mixin(name):
    def method(self, *args):
        return 0

    mixins = (SAMMixin, LabelSmoothingMixin)
    hidden = "LabelSmoothingMixin" if name == "compute_loss" else "SAMMixin"
    message = refused("Net", *mixins, Tiny, **{name: method})
    assert message == (
        f"Net.{name} does not call super(), so {hidden} would do nothing. Move {name} to a LightningModule of its own, "
        "say Model, and write: class Net(SAMMixin, LabelSmoothingMixin, Model):"
    )


def test_methods_of_the_composed_class_that_hide_nothing():
    class Net(SAMMixin, MixupMixin, Tiny):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

        def validation_step(self, batch, batch_idx):
            return None

        @property
        def depth(self):
            return 3


def test_a_hidden_mixin_in_a_subclass_of_a_composed_class():
    message = refused("Net", Composed, optimizer_step=lambda self, *args: None)
    assert message.startswith("Net.optimizer_step does not call super(), so SAMMixin would do nothing.")


class Wordless(pl.LightningModule):
    """A host whose training_step computes its loss by itself."""

    def __init__(self):
        super().__init__()
        self.network = nn.Linear(4, 3)

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_method_that_the_host_lacks():
    assert refused("Net", LabelSmoothingMixin, Wordless) == (
        "LabelSmoothingMixin needs Wordless.compute_loss(logits, target) -> scalar loss (and training_step has to call "
        "it), which does not exist. Define it in Wordless."
    )

    class Stepless(pl.LightningModule):
        pass

    assert refused("Net", SAMMixin, Stepless) == (
        "SAMMixin needs Stepless.training_step(batch, batch_idx) -> loss, which does not exist. Define it in Stepless."
    )

    class Formless(pl.LightningModule):
        def training_step(self, batch, batch_idx):
            return None

    assert refused("Net", FixMatchMixin, Formless) == (
        "FixMatchMixin needs Formless.forward(x) -> logits [N, C, ...], which does not exist. Define it in Formless."
    )


@pytest.mark.parametrize("mixin", [SAMMixin, EMATeacherMixin, FixMatchMixin, MixupMixin, L1Mixin])
def test_a_host_without_compute_loss_suits_mixins_that_do_not_change_it(mixin):
    type("Net", (mixin, Wordless), {})


def test_the_needed_method_may_come_from_the_composed_class_or_a_plain_class():
    class Loss:
        def compute_loss(self, logits, target):
            return F.cross_entropy(logits, target)

    class Speaking(Loss, Wordless):
        def training_step(self, batch, batch_idx):
            return self.compute_loss(self(batch[0]), batch[1])

    class Net(LabelSmoothingMixin, Speaking):
        pass

    fit(Net(), batches(1))


class Unused(Wordless):
    """Has a compute_loss that only validation calls."""

    def compute_loss(self, logits, target):
        return F.cross_entropy(logits, target)

    def validation_step(self, batch, batch_idx):
        self.compute_loss(self(batch[0]), batch[1])


class UnusedNet(MixupMixin, RDropMixin, LabelSmoothingMixin, Unused):
    num_classes = 3


@pytest.mark.parametrize("val_data", [None, batches(1)])
def test_a_compute_loss_that_training_step_does_not_call(val_data):
    with pytest.raises(MisconfigurationException) as caught:
        fit(UnusedNet(rdrop_weight=0.0), batches(1), val_data=val_data)
    assert str(caught.value) == (
        "Unused.training_step does not call self.compute_loss(logits, target), so LabelSmoothingMixin would do "
        "nothing. Call it there instead of the loss function."
    )
    fit(UnusedNet(rdrop_weight=0.0, label_smoothing_epsilon=0.0), batches(1))


# training_step's signature


def test_a_training_step_that_does_not_take_what_the_mixins_pass():
    class Short(Tiny):
        def training_step(self, batch):
            return None

    assert refused("Net", SAMMixin, Short) == (
        "Short.training_step(self, batch) does not take what the mixins pass on. "
        "Write: def training_step(self, batch, batch_idx):"
    )

    class Iterating(Tiny):
        def training_step(self, dataloader_iter, batch_idx=0):
            return None

    assert refused("Net", SAMMixin, Iterating) == (
        "Iterating.training_step(self, dataloader_iter, batch_idx=0) does not take what the mixins pass on. "
        "Write: def training_step(self, batch, batch_idx):"
    )


def test_training_steps_that_do():
    class Variadic(Tiny):
        def training_step(self, *args):
            return super().training_step(*args)

    class Named(Tiny):
        def training_step(self, data, number, extra=None):
            return super().training_step(data, number)

    for host in (Variadic, Named):
        fit(type("Net", (SAMMixin, MixupMixin, host), {})(), batches(1))


# Arguments


def test_an_argument_that_two_have():
    class Own(Tiny):
        def __init__(self, mixup_alpha: float = 0.5, **kwargs):
            super().__init__(**kwargs)

    assert refused("Net", SAMMixin, MixupMixin, Own) == (
        "Net: both MixupMixin and Own have an argument 'mixup_alpha', and the second would silently keep its default. "
        "Rename it in Own."
    )


def test_two_hosts_may_share_an_argument():
    class Wider(Tiny):
        def __init__(self, lr: float = 0.5):
            super().__init__(lr=lr)

    net = type("Net", (SAMMixin, Wider), {})(lr=0.25)
    assert net.lr == 0.25


class Net(SAMMixin, RDropMixin, Tiny):
    pass


@pytest.mark.parametrize(
    ("given", "meant"), [("rdrop_wieght", "rdrop_weight"), ("sam_roh", "sam_rho"), ("momentun", "momentum")]
)
def test_a_misspelt_argument(given, meant):
    with pytest.raises(CompositionError) as caught:
        Net(**{given: 0.1})
    assert str(caught.value) == f"Net() has no argument {given!r}; did you mean {meant!r}?"


def test_an_argument_like_none():
    with pytest.raises(CompositionError) as caught:
        Net(zzz=1)
    assert str(caught.value) == (
        "Net() has no argument 'zzz'. It takes lr, momentum, network, rdrop_weight, sam_adaptive, sam_ascent, sam_eta, "
        "sam_gsam_alpha, sam_interval, sam_rho."
    )


class Swallowing(Tiny):
    def __init__(self, **kwargs):
        super().__init__()
        self.rest = kwargs


def test_a_host_with_keyword_arguments_of_its_own_gets_those_that_no_technique_owns():
    swallowing = type("Net", (SAMMixin, Swallowing), {})
    assert swallowing(width=3, sam_rho=0.1).rest == {"width": 3}
    with pytest.raises(CompositionError) as caught:
        swallowing(sam_roh=0.1)
    assert str(caught.value) == "Net() has no argument 'sam_roh'; did you mean 'sam_rho'?"


def test_a_host_without_an_init():
    made = type("Net", (SAMMixin, Unused), {})
    assert made(sam_rho=0.1).sam_rho == 0.1

    class Initless(pl.LightningModule):
        def training_step(self, batch, batch_idx):
            return None

    with pytest.raises(
        CompositionError,
        match=r"Net\(\) has no argument 'width'. It takes sam_adaptive, sam_ascent, sam_eta, sam_gsam_alpha, ",
    ):
        type("Net", (SAMMixin, Initless), {})(width=3)


def test_a_wrong_value_is_named_before_anything_else():
    with pytest.raises(InvalidValueError):
        Net(sam_rho=-1)


# Other packages and modes


def test_a_host_of_the_other_lightning_package():
    import pytorch_lightning  # here, for it takes over the other package's logger

    class Other(pytorch_lightning.LightningModule):
        def training_step(self, batch, batch_idx):
            return None

    assert refused("Net", SAMMixin, Other) == (
        "Other comes from the package pytorch_lightning, which does not mix with lightning.pytorch. "
        "Write `import lightning.pytorch as pl` instead of `import pytorch_lightning as pl` in its file."
    )


class Manual(Tiny):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        return None


def test_manual_optimization():
    net = type("Net", (SAMMixin, L1Mixin, Manual), {})
    with pytest.raises(MisconfigurationException) as caught:
        fit(net(), batches(1))
    assert str(caught.value) == (
        "SAMMixin, L1Mixin: mixins need automatic optimization, but Manual sets self.automatic_optimization = False. "
        "Remove that line, or the mixins."
    )
    fit(net(sam_rho=0.0, l1_weight=0.0), batches(1))


@pytest.mark.parametrize(
    "name",
    ["stem", "stage", "needs", "trainable_parameters", "penalized_parameters", "class_count", "pseudo_logits"],
)
def test_a_name_of_the_host_that_the_mixins_would_hide(name):
    host = type("Model", (Tiny,), {name: lambda self: []})
    assert refused("Net", SAMMixin, host) == (
        f"Model.{name} would be hidden by the mixins' own {name}. Rename it in Model."
    )
