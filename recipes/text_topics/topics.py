"""A small text classifier, and the same with techniques that learn from texts without a label."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_tuning import EMATeacherMixin, RDropMixin, UDAMixin, VATMixin


class BagOfWords(nn.Module):
    """The mean of the words' embeddings, a hidden layer, and logits.

    Embeddings begin near 0, so that words that no labelled text has say little.

    Args:
        vocabulary_size: Number of embeddings.
        num_classes: Number of logits.
        width: Length of an embedding, and width of the hidden layer.
        dropout: Probability that one of their values is dropped.
    """

    def __init__(self, vocabulary_size: int, num_classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        words = self.dropout(self.embedding(input_ids))
        there = attention_mask[..., None]
        mean = (words * there).sum(1) / there.sum(1).clamp(min=1)
        return self.head(self.dropout(self.hidden(mean).relu()))


class TopicNet(pl.LightningModule):
    """Says which topic a text is about.

    Args:
        num_classes: Number of topics.
        vocabulary_size: Number of embeddings, at least that of the words in the data's vocabulary.
        width: Length of an embedding.
        dropout: Probability that a value of an embedding or of the hidden layer is dropped.
        lr: Learning rate of AdamW, which falls to 0 like a cosine.
        weight_decay: Of AdamW.
    """

    def __init__(
        self,
        num_classes: int = 6,
        vocabulary_size: int = 6000,
        width: int = 64,
        dropout: float = 0.5,
        lr: float = 0.01,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.num_classes, self.lr, self.weight_decay = num_classes, lr, weight_decay
        self.network = BagOfWords(vocabulary_size, num_classes, width, dropout)
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.network(**x)

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.compute_loss(self(x), y)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(y))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_accuracy)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_accuracy)

    def _evaluate(self, batch: Any, stage: str, accuracy: MulticlassAccuracy) -> None:
        x, y = batch
        logits = self(x)
        accuracy.update(logits, y)
        self.log(f"{stage}/loss", self.compute_loss(logits, y), batch_size=len(y))
        self.log(f"{stage}/accuracy", accuracy, prog_bar=True, batch_size=len(y))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class TunedTopicNet(EMATeacherMixin, VATMixin, UDAMixin, RDropMixin, TopicNet):
    """The classifier with techniques; config.yaml switches them off."""
