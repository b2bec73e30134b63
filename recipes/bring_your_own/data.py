"""scikit-learn's handwritten digits in plain DataLoaders."""

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset


class DigitData(pl.LightningDataModule):
    """The 797 test images are the same for every seed; the seed draws training and validation images from the rest."""

    def __init__(self, seed: int = 0, train_size: int = 200, val_size: int = 200, batch_size: int = 32):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.tensor(digits.target)
        rest, test = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split([1000, 797])
        rest = rest[torch.randperm(1000, generator=torch.Generator().manual_seed(self.hparams.seed))]
        sizes = [self.hparams.train_size, self.hparams.val_size]
        train, val = rest[: sum(sizes)].split(sizes)
        self.train, self.val, self.test = (TensorDataset(images[part], labels[part]) for part in (train, val, test))

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.hparams.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=1000)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=1000)
