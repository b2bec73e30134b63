import warnings

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure

from lightning_tuning.callbacks._diagnosis import diagnose
from lightning_tuning.callbacks._pictures import run_folder, save_picture


def trainer(tmp_path, logger=False):
    return pl.Trainer(default_root_dir=tmp_path, logger=logger, accelerator="cpu", enable_checkpointing=False)


def test_a_picture_replaces_the_earlier_one_as_a_whole(tmp_path, monkeypatch):
    made = trainer(tmp_path)
    path = save_picture(made, Figure(figsize=(1, 1)), "heat")
    assert path == tmp_path / "heat.png"
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG")

    class Broken(Figure):
        def savefig(self, path, **kwargs):
            path.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.warns(UserWarning, match=r"heat\.png was not written: disk full\. Training goes on\."):
        assert save_picture(made, Broken(), "heat") is None
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["heat.png"]


def test_the_folder_is_the_loggers(tmp_path):
    logger = CSVLogger(tmp_path, name="a", version="b")
    assert run_folder(trainer(tmp_path, logger)) == tmp_path / "a" / "b"
    assert run_folder(trainer(tmp_path)) == tmp_path


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    made = trainer(tmp_path)
    monkeypatch.setattr(type(made), "is_global_zero", False)
    assert save_picture(made, Figure(), "heat") is None
    diagnose(made, "Nothing.")
    assert not list(tmp_path.iterdir())


def test_a_diagnosis_is_a_warning_and_a_line(tmp_path):
    made = trainer(tmp_path / "new")
    with pytest.warns(UserWarning, match="Step 0, epoch 0: Layer 3 is dead."):
        diagnose(made, "Layer 3 is dead.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diagnose(made, "Layer 4 as well.")
    lines = (tmp_path / "new" / "diagnosis.txt").read_text().splitlines()
    assert lines == ["Step 0, epoch 0: Layer 3 is dead.", "Step 0, epoch 0: Layer 4 as well."]
