"""What Lightning 2.6.6 does on SIGTERM, and what SaveOnSignal does instead."""

from __future__ import annotations

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_tuning import SaveOnSignal
from tests.callbacks.test_save_on_signal import SendsSignal
from tests.resume.users_own import Net, data


@pytest.mark.parametrize("ours", [False, True])
def test_sigterm_writes_nothing_ends_with_code_0_and_within_a_window(ours, tmp_path):
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[SendsSignal(batch_idx=0), *([SaveOnSignal()] if ours else [])],
        default_root_dir=tmp_path,
        accumulate_grad_batches=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(SIGTERMException) as caught:
        trainer.fit(Net(), *data())
    assert (caught.value.code or 0) == (143 if ours else 0)
    assert len(list(tmp_path.rglob("*.ckpt"))) == ours
    assert trainer.global_step == ours
