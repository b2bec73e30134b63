"""Each callback with each technique: they train, stay finite, and a resumed run equals the straight one bitwise, the
callback's own state included.

Callbacks act where the optimizer steps. So what a technique may get in the way of is that step, which those of the
stages ``optimizer`` and ``teacher`` share with them, and what both change. The other pairs are with the slow tests, and
so are those with callbacks that only watch: that the training is bitwise the same beside them is tested apart.
"""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_tuning import ExactResume
from lightning_tuning.callbacks import CheckpointSoup
from lightning_tuning.errors import CompositionError, InvalidValueError, NoEffectError
from lightning_tuning.mixins import TECHNIQUES

from .callback_settings import CALLBACKS
from .nets import assert_equal_state, loaders, make, trainer
from .settings import ROWS, Setting

pytestmark = pytest.mark.filterwarnings("ignore:.*EMATeacherMixin answers in evaluation mode")
AT_THE_STEP = ("optimizer", "teacher")


def close(callback, technique) -> bool:
    shared = set(getattr(callback, "changes", ())) & set(technique.changes)
    return CALLBACKS[callback].kind != "watches" and (technique.stage in AT_THE_STEP or bool(shared))


def pair(callback, technique):
    marks = () if close(callback, technique) else pytest.mark.slow
    return pytest.param(callback, technique, id=f"{callback.__name__}-{technique.stem}", marks=marks)


REFUSED = {
    ("BatchNormRecalibration", "norm"): (NoEffectError, "no batch norm layer"),  # the technique has exchanged them
    ("CheckpointSoup", "temporal_ensembling"): (InvalidValueError, "is not of the model"),  # its table grows in the fit
}


def callback_of(kind, technique, tmp_path):
    """The callback of the table; for a soup, one of two trained modules with the technique."""
    if kind is not CheckpointSoup:
        return CALLBACKS[kind].make()
    files = [tmp_path / f"{seed}.ckpt" for seed in (1, 2)]
    for seed, file in enumerate(files, start=1):
        if not file.exists():
            made = trainer(tmp_path, max_epochs=1)
            made.fit(make(technique.stem, seed), loaders(ROWS[technique.stem][1], 8, size=16))
            made.save_checkpoint(file)
    return CheckpointSoup([str(file) for file in files], monitor="val/loss", mode="min")


def fit(kind, technique, tmp_path, *others, seed=0, ckpt_path=None):
    setting, callback = ROWS[technique.stem][1], callback_of(kind, technique, tmp_path)
    net = make(technique.stem, seed, plain=CALLBACKS[kind].plain)
    callbacks = [ExactResume(seed=3), callback, *others]
    made = trainer(tmp_path, callbacks=callbacks, enable_checkpointing=None)
    made.fit(net, loaders(setting, 8, size=16), loaders(Setting({}), 8, size=8), ckpt_path=ckpt_path)
    return made, callback


@pytest.mark.parametrize(
    ("kind", "technique"), [pair(callback, technique) for callback in CALLBACKS for technique in TECHNIQUES]
)
def test_a_callback_and_a_technique_train_and_resume(kind, technique, tmp_path):
    keep = ModelCheckpoint(tmp_path, "kept", every_n_train_steps=2, save_top_k=-1)
    refused = {
        **REFUSED,
        **{("MicroBatch", t.stem): (CompositionError, t.whole_batch) for t in TECHNIQUES if t.whole_batch},
    }
    if (kind.__name__, technique.stem) in refused:
        error, message = refused[kind.__name__, technique.stem]
        with pytest.raises(error, match=message):
            fit(kind, technique, tmp_path, keep)
        return
    straight, callback = fit(kind, technique, tmp_path, keep)
    assert all(torch.isfinite(value).all() for value in straight.model.state_dict().values())
    torch.manual_seed(12345)
    resumed, again = fit(kind, technique, tmp_path, seed=99, ckpt_path=tmp_path / "kept.ckpt")
    assert straight.global_step == resumed.global_step
    assert_equal_state(straight.model.state_dict(), resumed.model.state_dict())
    assert_equal_state(straight.optimizers[0].state_dict(), resumed.optimizers[0].state_dict())
    assert str(callback.state_dict()) == str(again.state_dict())
