"""What every callback must hold, whether it edits gradients, watches or steers."""

from __future__ import annotations

import io
import pickle
import re

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_tuning import ConfidencePenaltyMixin, ExactResume, callbacks, compose

from .callback_settings import CALLBACKS, NO_ROW
from .nets import Host, InTurns, assert_equal_state, loaders, trainer
from .settings import Setting
from .test_callbacks import KeepState
from .test_contract import Overflow
from .test_contract_ddp import SaveRank

pytestmark = pytest.mark.filterwarnings(r"ignore:Step \d+, epoch \d+")  # what a callback tells the user
every_callback = pytest.mark.parametrize("kind", CALLBACKS, ids=lambda kind: kind.__name__)
EPOCHS, STEPS = 3, 4
DATA = Setting({})
TermHost = compose(Host, ConfidencePenaltyMixin, name="TermHost")


def of_kind(*kinds):
    chosen = [callback for callback, setting in CALLBACKS.items() if setting.kind in kinds]
    return pytest.mark.parametrize("kind", chosen, ids=lambda kind: kind.__name__)


class KeptPlace(DataLoader):
    """A loader that can be resumed within an epoch."""

    place = start = 0

    def __iter__(self):
        start, self.start, self.place = self.start, 0, 0
        for number, batch in enumerate(super().__iter__()):
            if number >= start:
                self.place = (number + 1) % len(self)  # the Trainer does not ask for what comes after the last batch
                yield batch

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.start = state["place"] % len(self)  # an epoch that was read to its end is not gone on with


def data(size=8):
    dataset = loaders(DATA, size).dataset
    return [
        kind(dataset, size, sampler=InTurns(len(dataset)), generator=torch.Generator())
        for kind in (KeptPlace, DataLoader)
    ]


def make(kind, seed=0):
    torch.manual_seed(seed)
    return TermHost(plain=CALLBACKS[kind].plain, confidence_penalty_weight=0.1)


def fit(net, callbacks, tmp_path, ckpt_path=None, size=8, **kwargs):
    made = trainer(tmp_path, callbacks=[ExactResume(seed=3), *callbacks], **{"max_epochs": EPOCHS, **kwargs})
    made.fit(net, *data(size), ckpt_path=ckpt_path)
    return made


def test_the_table_has_every_callback():
    kinds = {getattr(callbacks, name) for name in callbacks.__all__}
    assert kinds == set(CALLBACKS) | NO_ROW


def slow(value):
    """A row of the slow tests: by default each class is tried in one way."""
    return pytest.param(value, marks=pytest.mark.slow)


BF16 = {"precision": "bf16-mixed", "accumulate_grad_batches": 2}


@of_kind("watches")
@pytest.mark.parametrize("precision", ["32-true", slow("bf16-mixed"), slow("16-mixed")])
def test_training_is_bitwise_what_it_is_without_a_watcher(kind, precision, tmp_path):
    nets = [make(kind), make(kind)]
    for net, watching in zip(nets, [[], [CALLBACKS[kind].make()]], strict=True):
        others = [Overflow(2)] * (precision == "16-mixed")
        settings = {"precision": precision, "logger": CSVLogger(tmp_path), "log_every_n_steps": 1}
        fit(net, [*watching, *others], tmp_path, gradient_clip_val=0.5, **settings)
    assert_equal_state(dict(nets[0].state_dict()), dict(nets[1].state_dict()))


@every_callback
def test_nothing_is_left_behind(kind, tmp_path):
    net, callback = make(kind), CALLBACKS[kind].make()
    made = fit(net, [callback], tmp_path)
    for optimizer in made.optimizers:
        assert not optimizer._optimizer_step_post_hooks
        assert not optimizer._optimizer_step_pre_hooks
        assert "step" not in vars(optimizer) or optimizer.step.__self__ is optimizer
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert not any(parameter._backward_hooks for parameter in net.parameters())
    patched = set(vars(made.precision_plugin)) & {"_after_closure", "clip_grad_by_norm", "clip_grad_by_value"}
    assert not patched
    assert "forward" not in vars(net)
    assert all(torch.isfinite(value).all() for value in net.state_dict().values())


@every_callback
@pytest.mark.parametrize("step", [STEPS, STEPS + 2], ids=["epoch", "mid-epoch"])
@pytest.mark.parametrize("precision", ["32-true", slow("16-mixed")])
def test_resume_is_the_straight_run_bitwise(kind, step, precision, tmp_path):
    def run(seed, ckpt_path=None):
        callback, net = CALLBACKS[kind].make(), make(kind, seed)
        overflow = [Overflow(2)] * (precision == "16-mixed")
        if step % STEPS:
            keep = ModelCheckpoint(tmp_path, "kept", every_n_train_steps=step, save_top_k=-1)
        else:
            keep = ModelCheckpoint(tmp_path, "kept", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=False)
        keeping = [] if ckpt_path else [keep]
        made = fit(
            net, [callback, *overflow, *keeping], tmp_path, ckpt_path, precision=precision, enable_checkpointing=None
        )
        return net, callback, made

    net, callback, made = run(0)
    torch.manual_seed(12345)
    again, callback_again, made_again = run(99, tmp_path / "kept.ckpt")
    assert made.global_step == made_again.global_step == EPOCHS * STEPS
    assert_equal_state(dict(net.state_dict()), dict(again.state_dict()))
    assert_equal_state(made.optimizers[0].state_dict(), made_again.optimizers[0].state_dict())
    assert str(callback.state_dict()) == str(callback_again.state_dict())


@of_kind("steers")
def test_a_step_that_the_scaler_skips_advances_nothing(kind, tmp_path):
    callback = CALLBACKS[kind].make()
    keep = KeepState(callback)
    fit(make(kind), [callback, Overflow(step=2), keep], tmp_path, precision="16-mixed", max_epochs=1)
    assert keep.states[1] == keep.states[2]


@every_callback
@pytest.mark.parametrize("settings", [{}, slow(BF16)], ids=["32", "b16"])
def test_two_ranks_end_equal(kind, settings, tmp_path):
    ranks = {"strategy": "ddp_fork", "devices": 2}
    fit(make(kind), [CALLBACKS[kind].make(), SaveRank(tmp_path)], tmp_path, size=4, max_epochs=2, **ranks, **settings)
    rank0, rank1 = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    batch_norm = ("running_mean", "running_var")  # each rank has its own
    parts = [{k: v for k, v in rank.items() if not k.endswith(batch_norm)} for rank in (rank0, rank1)]
    assert_equal_state(*parts)


@every_callback
def test_the_command_line_documents_each_argument(kind):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "callback")
    text = io.StringIO()
    parser.print_help(text)
    for name in parser.get_defaults().get("callback", Namespace()).as_dict():
        described = re.split(rf"--callback\.{name}\b", text.getvalue())[-1].split("--callback")[0]
        text_and_type = re.split(r"\((?:required,\s+)?type:", described)
        assert len(text_and_type) == 2
        assert len(text_and_type[0]) > 40, f"{name} has no description"


@every_callback
def test_pickle(kind):
    callback = CALLBACKS[kind].make()
    assert isinstance(callback, pl.Callback)
    assert vars(pickle.loads(pickle.dumps(callback))).keys() == vars(callback).keys()
