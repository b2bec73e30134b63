"""PredictionSamples: validation images with what the network takes them for, the most wrong ones first."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lightning_tuning.errors import check_choice, check_count

from ._image_grid import BAD, GOOD, Tile, are_ids, are_images, class_name, image_grid
from ._pictures import save_picture


class PredictionSamples(Callback):
    """Draws validation images with the predicted and the true class, as ``prediction_samples.png`` in the run's folder
    and as an image at Weights & Biases and TensorBoard.

    What answers is what answers in evaluation, so an EMA teacher where there is one. Batches are ``(x, y)``, or what
    ``unpack_batch`` makes of them, with images ``[N, C, H, W]`` and class ids ``[N]``; of others nothing is drawn. Of
    several loaders the first is looked at, of several processes the first one's part.

    Args:
        n: How many images are drawn, at least 1.
        which: ``worst``: those whose true class got the least probability; ``first``: the first ones, the same in each
            epoch where the loader does not shuffle.
        every_n_epochs: Validations that are drawn: those of every n-th epoch, at least 1.

    Raises:
        InvalidValueError: An argument is not allowed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PredictionSamples(n=32)], logger=False, accelerator="cpu")
    """

    def __init__(self, n: int = 24, which: Literal["worst", "first"] = "worst", every_n_epochs: int = 1) -> None:
        super().__init__()
        check_count("n", n, 1)
        check_choice("which", which, ("worst", "first"))
        check_count("every_n_epochs", every_n_epochs, 1)
        self.n = n
        self.which = which
        self.every_n_epochs = every_n_epochs
        self._told = False
        self._kept: list[tuple[float, int, float, int, Tensor]] = []
        """Of each image: the true class's probability, the predicted class, its probability, the true class."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._kept = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        enough = self.which == "first" and len(self._kept) >= self.n
        if dataloader_idx or enough or not self._is_due(trainer):
            return
        unpack: Any = getattr(pl_module, "unpack_batch", None)
        items = batch if unpack is None else unpack(batch)
        x, target = items[:2] if isinstance(items, (tuple, list)) and len(items) > 1 else (None, None)
        if not (are_images(x) and are_ids(target)):
            if not self._told:
                rank_zero_info("PredictionSamples draws nothing: it needs batches of images [N, C, H, W] and ids [N].")
            self._told = True
            return
        with trainer.precision_plugin.forward_context():
            probabilities = pl_module(x).float().softmax(1).cpu()
        right = probabilities.gather(1, target.cpu()[:, None])[:, 0]
        order = right.argsort(stable=True) if self.which == "worst" else range(len(right))
        for i in list(order)[: self.n]:
            p, k = probabilities[i].max(0)
            self._kept.append((right[i].item(), int(k), p.item(), int(target[i]), x[i].detach().cpu()))
        if self.which == "worst":
            self._kept.sort(key=lambda kept: kept[0])
        del self._kept[self.n :]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (trainer.strategy.reduce_boolean_decision(bool(self._kept), all=True) and self._is_due(trainer)):
            return
        tiles = [
            Tile(image, _text(trainer, predicted, p, true), GOOD if predicted == true else BAD)
            for _, predicted, p, true, image in self._kept
        ]
        kind = "least probable true classes" if self.which == "worst" else "first validation images"
        figure = image_grid(trainer, pl_module, tiles, f"epoch {trainer.current_epoch}: {kind}")
        save_picture(trainer, figure, "prediction_samples")
        self._kept = []

    def _is_due(self, trainer: Trainer) -> bool:
        in_fit = trainer.state.fn == TrainerFn.FITTING
        return not (trainer.sanity_checking or (in_fit and (trainer.current_epoch + 1) % self.every_n_epochs))


def _text(trainer: Trainer, predicted: int, p: float, true: int) -> str:
    answer = f"{class_name(trainer, predicted)}  {p:.2f}"
    return answer if predicted == true else f"{answer}\nis {class_name(trainer, true)}"
