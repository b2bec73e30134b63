import inspect
import pickle

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_tuning import EMATeacherMixin, L1Mixin, LabelSmoothingMixin, MixupMixin, SAMMixin, compose
from lightning_tuning.errors import CompositionError
from lightning_tuning.mixins.composition import own_arguments
from tests.mixins.tiny import Tiny, batches, fit

Composed = compose(Tiny, L1Mixin, MixupMixin, SAMMixin, name="Composed")


class Wordless(pl.LightningModule):
    """A host without a compute_loss."""

    def training_step(self, batch, batch_idx):
        return None


def test_compose_sorts_and_names():
    assert [c.__name__ for c in Composed.__bases__] == ["SAMMixin", "MixupMixin", "L1Mixin", "Tiny"]
    assert (Composed.__name__, Composed.__qualname__, Composed.__module__) == ("Composed", "Composed", __name__)
    assert Composed.__doc__ == Tiny.__doc__
    assert compose(Tiny, SAMMixin).__name__ == "TunedTiny"
    assert compose(Tiny, LabelSmoothingMixin, SAMMixin).__mro__[1] is SAMMixin


def test_compose_checks_as_the_class_statement_does():
    with pytest.raises(CompositionError, match=r"LabelSmoothingMixin needs Wordless\.compute_loss"):
        compose(Wordless, LabelSmoothingMixin)


@pytest.mark.parametrize("classes", [(SAMMixin, Tiny), (Tiny, nn.Linear), (Tiny, SAMMixin, Tiny)])
def test_compose_of_what_is_no_host_or_no_mixin(classes):
    with pytest.raises(CompositionError) as caught:
        compose(*classes)
    given = ", ".join(c.__name__ for c in classes)
    wanted = "takes the class of a LightningModule and then classes of mixins"
    assert str(caught.value) == f"compose(host, *mixins) {wanted}, not ({given})."


def test_compose_of_objects_and_names():
    with pytest.raises(CompositionError, match=r"not \(Tiny, an object of str\)\."):
        compose(Tiny, "sam")
    with pytest.raises(CompositionError, match=r"not \(an object of Tiny, SAMMixin\)\."):
        compose(Tiny(), SAMMixin)


def test_compose_of_a_mixin_twice():
    with pytest.raises(CompositionError, match=r"compose got SAMMixin twice\."):
        compose(Tiny, SAMMixin, SAMMixin)


def test_a_composed_module_is_picklable():
    net = Composed(sam_rho=0.3, mixup_alpha=0.2, lr=0.7)
    copied = pickle.loads(pickle.dumps(net))
    assert type(copied) is Composed
    assert (copied.sam_rho, copied.mixup_alpha, copied.l1_weight, copied.lr) == (0.3, 0.2, 1e-5, 0.7)
    x = torch.randn(2, 4)
    assert torch.equal(copied(x), net(x))
    fit(copied, batches(1))


def test_signatures_along_the_chain():
    """Each class of the chain names its own arguments and passes the rest on: what jsonargparse and editors read."""
    for technique in (SAMMixin, MixupMixin, L1Mixin):
        parameters = list(inspect.signature(technique.__init__).parameters.values())
        assert [p.kind for p in parameters[:2]] == [
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
        ]
        assert parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
        assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters[2:-1])
        assert all(p.annotation != inspect.Parameter.empty for p in parameters[1:])
    assert list(inspect.signature(Composed).parameters) == ["args", *own_arguments(SAMMixin), "kwargs"]


def test_positional_arguments_reach_the_host():
    network = nn.Linear(4, 3)
    net = Composed(network, 0.25, sam_rho=0.3)
    assert net.network is network
    assert net.lr == 0.25


def test_what_is_on():
    net = Composed(sam_rho=0.3, mixup_alpha=0.0)
    assert net.active_techniques() == [SAMMixin, L1Mixin]
    defaults = {name: p.default for name, p in own_arguments(SAMMixin).items()}
    assert net.tuning_settings() == {**defaults, "sam_rho": 0.3, "l1_weight": 1e-5}
    assert SAMMixin.is_on({"sam_rho": 0.1})
    assert not SAMMixin.is_on({"sam_rho": 0.0})
    assert not SAMMixin.is_on({})
    assert EMATeacherMixin.is_on({"ema_teacher_decay": 0.0})
    assert not EMATeacherMixin.is_on({"ema_teacher_decay": None})


class Base(Tiny):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()


class Renamed(Base):
    """Lightning collects the arguments of both classes: the checkpoint has ``width``, which this one does not take."""

    def __init__(self, w: int = 4) -> None:
        super().__init__(width=w)
        self.w = w


RenamedNet = compose(Renamed, L1Mixin, name="RenamedNet")


def test_a_checkpoint_with_hyperparameters_that_the_host_does_not_take(tmp_path):
    net = RenamedNet(w=5, l1_weight=0.5)
    assert net.hparams["width"] == 5
    fit(net, batches(1)).save_checkpoint(tmp_path / "a.ckpt")
    loaded = RenamedNet.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert (loaded.w, loaded.l1_weight) == (5, 0.5)
    with pytest.raises(CompositionError, match="has no argument 'width'"):
        RenamedNet.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True, width=7)
    with pytest.raises(CompositionError, match="has no argument 'l1_wieght'; did you mean 'l1_weight'"):
        RenamedNet.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True, l1_wieght=7)
    with pytest.raises(CompositionError, match="has no argument 'width'"):
        RenamedNet(width=3)
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        net.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
