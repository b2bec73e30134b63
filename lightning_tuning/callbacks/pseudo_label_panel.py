"""PseudoLabelPanel: unlabelled images with the pseudo labels that a technique learns from."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lightning_tuning.errors import check_count, check_range
from lightning_tuning.functional import evaluating, get_rng_state, set_rng_state

from ._image_grid import BAD, GOOD, PLAIN, Tile, are_images, class_name, image_grid
from ._pictures import save_picture

_USUAL = 0.95
_RELATIVE = "adamatch"
"""Its threshold is a share of the labelled batch's confidence, so no fixed number."""


class PseudoLabelPanel(Callback):
    """Draws unlabelled images with the class that the pseudo labels give them and its probability, as
    ``pseudo_label_panel.png`` in the run's folder and as an image at Weights & Biases and TensorBoard.

    The images are the weak views of the epoch's first batch; the teacher answers where there is one, in evaluation
    mode, at the epoch's end. A frame says that the probability reaches ``threshold``. Where the batch tells the true
    class (``target``; -1: unknown), right labels are green and wrong ones red. It logs no numbers: the techniques do,
    as ``train/fixmatch_share`` and ``train/fixmatch_precision``. Of several processes the first one's part is drawn.

    Args:
        n: Number of images, at least 1; no more than an unlabelled batch has.
        threshold: Probability from which on a label is framed, 0 to 1; null: the technique's, or 0.95 where that has
            none or one that moves.
        every_n_epochs: Epochs between two pictures, at least 1.

    Raises:
        InvalidValueError: An argument is not allowed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PseudoLabelPanel(threshold=0.9)], logger=False, accelerator="cpu")
    """

    def __init__(self, n: int = 24, threshold: float | None = None, every_n_epochs: int = 1) -> None:
        super().__init__()
        check_count("n", n, 1)
        if threshold is not None:
            check_range("threshold", threshold, 0, 1)
        check_count("every_n_epochs", every_n_epochs, 1)
        self.n = n
        self.threshold = threshold
        self.every_n_epochs = every_n_epochs
        self._views: Tensor | None = None
        self._target: Tensor | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._views = None
        if not hasattr(pl_module, "unlabeled_of"):
            rank_zero_info(
                f"PseudoLabelPanel draws nothing: {type(pl_module).__name__} has no technique that learns from "
                "unlabelled inputs. Add one, e.g. FixMatchMixin."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx or not hasattr(pl_module, "unlabeled_of") or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        unlabeled: Any = pl_module.unlabeled_of(batch, "PseudoLabelPanel")  # type: ignore[operator]
        if are_images(unlabeled.weak):
            self._views = unlabeled.weak[: self.n].detach()
            self._target = None if unlabeled.target is None else unlabeled.target[: self.n].cpu()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._views is None:
            return
        views, self._views = self._views, None
        logits = self._believed(trainer, pl_module, views)
        if logits.ndim != 2:
            return
        confidence, labels = logits.softmax(1).max(1)
        threshold = self._threshold(pl_module)
        framed = confidence >= threshold
        known = torch.zeros_like(framed) if self._target is None else self._target >= 0
        if known.shape != framed.shape:  # a target that is no class ids
            known = torch.zeros_like(framed)
        right = known & (labels == self._target) if known.any() else known
        tiles = [
            Tile(
                views[i],
                f"{class_name(trainer, int(labels[i]))}  {confidence[i]:.2f}",
                GOOD if right[i] else BAD if known[i] else PLAIN,
                bool(framed[i]),
            )
            for i in range(len(views))
        ]
        count, of_known, hits = (int(rows.sum()) for rows in (framed, framed & known, framed & right))
        title = f"epoch {trainer.current_epoch}: {count} of {len(views)} reach {threshold:g}"
        if of_known:
            whole = of_known == count
            title += f", {hits} of these right" if whole else f", {hits} right of the {of_known} whose class is known"
        save_picture(trainer, image_grid(trainer, pl_module, tiles, title), "pseudo_label_panel")

    def _threshold(self, module: LightningModule) -> float:
        if self.threshold is not None:
            return self.threshold
        stems = [technique.stem for technique in module.active_techniques()]  # type: ignore[operator]
        fixed = [getattr(module, f"{stem}_threshold", None) for stem in stems if stem != _RELATIVE]
        return next((value for value in fixed if value is not None), _USUAL)

    @staticmethod
    def _believed(trainer: Trainer, module: LightningModule, views: Tensor) -> Tensor:
        """The logits ``[N, C, ...]`` of the pseudo labels; modes and random generators are left as they were."""
        random = get_rng_state(module.device)
        try:
            with evaluating(module), torch.no_grad(), trainer.precision_plugin.forward_context():
                return module.pseudo_logits(views).float().cpu()  # type: ignore[operator]
        finally:
            set_rng_state(random)
