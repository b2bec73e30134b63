"""What a checkpoint holds of a datamodule's arguments."""

import numpy as np
import torch

from lightning_tuning import ImageFolderDataModule

from .pictures import Watcher, trainer, write_folder


def test_paths_and_numbers_of_numpy_are_saved_as_data(tmp_path):
    """As Python code has them; torch refuses them when it loads data alone."""
    root = write_folder(tmp_path / "animals", {"cats": range(10), "dogs": range(10, 20)})
    settings = {"batch_size": np.int64(4), "val_size": np.float64(0.2), "seed": np.int32(5), "cache": tmp_path / "kept"}
    runs = trainer(tmp_path, max_epochs=1)
    data = ImageFolderDataModule(root, image_size=8, num_workers=0, **settings)
    runs.fit(Watcher(), data)
    runs.save_checkpoint(tmp_path / "a.ckpt")
    arguments = torch.load(tmp_path / "a.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    given = [arguments[name] for name in ("path", "batch_size", "val_size", "seed", "cache")]
    assert given == [str(root), 4, 0.2, 5, str(tmp_path / "kept")]
    assert [*map(type, given)] == [str, int, float, int, str]
    again = ImageFolderDataModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert (again.path, again.batch_size) == (str(root), 4)
    trainer(tmp_path, max_epochs=2).fit(Watcher(), data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
