"""Real data of scikit-learn for the hosts' tests."""

import torch
from lightning.pytorch import LightningDataModule
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

HAS_LOOP = (0, 6, 8, 9)


def diabetes() -> tuple[Tensor, Tensor]:
    """442 patients: 10 standardised numbers, and the disease's progression as mean 0, deviation 1; shuffled."""
    x, y = load_diabetes(return_X_y=True)
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y).float()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return ((x - x.mean(0)) / x.std(0))[order], ((y - y.mean()) / y.std())[order]


def digit_bits() -> tuple[Tensor, Tensor]:
    """1797 digits ``[N, 1, 8, 8]`` and of each whether it has a loop, is even, is at least 5: int64 ``[N, 3]``."""
    images, digits = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    bits = [[digit in HAS_LOOP, digit % 2 == 0, digit >= 5] for digit in digits]
    return x, torch.tensor(bits).long()


def parts(x: Tensor, y: Tensor, train: int, batch_size: int = 32) -> tuple[DataLoader, DataLoader]:
    """Loaders of the first ``train`` samples and of the others."""
    first = DataLoader(TensorDataset(x[:train], y[:train]), batch_size=batch_size, shuffle=True)
    return first, DataLoader(TensorDataset(x[train:], y[train:]), batch_size=256)


class Data(LightningDataModule):
    """A user's datamodule.

    Args:
        batch_size: Samples a step.
    """

    def __init__(self, batch_size: int = 64):
        super().__init__()
        self.batch_size = batch_size

    def load(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        self.x, self.y = self.load()

    def loader(self, start: int, stop: int) -> DataLoader:
        return DataLoader(TensorDataset(self.x[start:stop], self.y[start:stop]), batch_size=self.batch_size)

    def train_dataloader(self) -> DataLoader:
        return self.loader(0, 256)

    def val_dataloader(self) -> DataLoader:
        return self.loader(256, 300)

    test_dataloader = predict_dataloader = val_dataloader


class DiabetesData(Data):
    """Vectors and one value each."""

    num_outputs = 1
    in_channels = 10

    def load(self) -> tuple[Tensor, Tensor]:
        return diabetes()


class DigitBitsData(Data):
    """Images and three bits each."""

    num_classes = 3
    in_channels = 1
    image_size = 8

    def load(self) -> tuple[Tensor, Tensor]:
        return digit_bits()
