"""Adversarial training: train on the inputs, within a small ball, that are hardest now."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_tuning.errors import InvalidValueError, check_choice, check_range
from lightning_tuning.functional import Start, error_odds, kl_divergence, of_samples
from lightning_tuning.mixins.attack import Attack, log_adversarial
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.families import alternatives
from lightning_tuning.mixins.inner_pass import inner_pass
from lightning_tuning.mixins.inputs import check_class_logits
from lightning_tuning.mixins.perturbable import Perturbable
from lightning_tuning.mixins.plan import Cost

_NAME = "AdversarialMixin"


class AdversarialMixin(TuningMixin):
    """Trains on adversarial inputs: each is moved, within a ball, to where the current network's loss is high.

    ``adversarial_steps=1`` is the fast gradient sign method (Goodfellow et al., 2015; with a random start Wong et al.,
    2020), more steps are projected gradient descent (Madry et al., 2018). Where ``normalize``, an attribute of the
    module or else of the datamodule, tells mean and std of each channel, lengths are in pixels of [0, 1] and the images
    stay in that range; otherwise they are in the unit of the inputs, or of the embeddings of token ids.

    Args:
        adversarial_epsilon: Radius of the ball, >= 0, 0.0314 is 8/255; 0.3 for MNIST. Off: 0.
        adversarial_steps: Gradients for each batch, >= 1: 1 is fast, 7 to 10 are safe.
        adversarial_step_size: Length of a step, > 0. None: for one step epsilon, or 1.25 epsilon from a random start;
            for more 2.5 epsilon / steps.
        adversarial_norm: ``linf``: each pixel moves by at most epsilon; ``l2``: the Euclidean norm of a sample's whole
            change is at most epsilon.
        adversarial_random_start: Whether the search begins at a random point of the ball, not at the input.
        adversarial_clean_share: Share of each batch's samples, drawn at random, that stay as they are, in [0, 1).
        adversarial_evaluation_mode: Whether batch norm and dropout are in evaluation mode while the inputs are sought.
        adversarial_target: ``labels``: the loss is that of the moved inputs. ``consistency``: the loss is that of the
            inputs themselves, and the divergence of the output for the moved inputs from that for them, a teacher's
            if there is one, is added; the search raises this divergence.
        adversarial_weight: Factor of that divergence, > 0; for ``consistency`` alone.

    Raises:
        InvalidValueError: An argument is out of range, ``consistency`` is without a random start (it has no slope at
            the inputs themselves) or with a clean share, or inputs or output cannot be attacked.

    Source: Madry, Makelov, Schmidt, Tsipras & Vladu, 2018, "Towards deep learning models resistant to adversarial
    attacks", equation 2.1 and section 2.1; Goodfellow, Shlens & Szegedy, 2015, "Explaining and harnessing adversarial
    examples"; Wong, Rice & Kolter, 2020, "Fast is better than free", the algorithm of FGSM adversarial training; clean
    share: Kurakin, Goodfellow & Bengio, 2017, "Adversarial machine learning at scale".
    """

    stem = "adversarial"
    stage = "attack"
    off = {"adversarial_epsilon": 0.0}
    needs = ("training_step", "compute_loss", "forward")
    changes = ("batch", "loss")
    tasks = ("multiclass",)
    conflicts = alternatives("adversarial")

    def __init__(
        self,
        *args: Any,
        adversarial_epsilon: float = 0.0314,
        adversarial_steps: int = 7,
        adversarial_step_size: float | None = None,
        adversarial_norm: Literal["linf", "l2"] = "linf",
        adversarial_random_start: bool = True,
        adversarial_clean_share: float = 0.0,
        adversarial_evaluation_mode: bool = True,
        adversarial_target: Literal["labels", "consistency"] = "labels",
        adversarial_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("adversarial_clean_share", adversarial_clean_share, 0.0, 1.0, open_high=True)
        check_choice("adversarial_target", adversarial_target, ("labels", "consistency"))
        check_range("adversarial_weight", adversarial_weight, open_low=True)
        if adversarial_target == "consistency" and not adversarial_random_start:
            raise InvalidValueError(
                "adversarial_target is 'consistency' and adversarial_random_start False, but a network agrees with "
                "itself best at the input, where the search would find no slope. Write adversarial_random_start=True."
            )
        if adversarial_target == "consistency" and adversarial_clean_share:
            raise InvalidValueError(
                f"adversarial_target is 'consistency' and adversarial_clean_share {adversarial_clean_share!r}, but "
                "there the labels' loss is of clean inputs anyway. Write adversarial_clean_share=0."
            )
        self.adversarial_epsilon = adversarial_epsilon
        self.adversarial_steps = adversarial_steps
        self.adversarial_step_size = adversarial_step_size
        self.adversarial_norm = adversarial_norm
        self.adversarial_random_start = adversarial_random_start
        self.adversarial_clean_share = adversarial_clean_share
        self.adversarial_evaluation_mode = adversarial_evaluation_mode
        self.adversarial_target = adversarial_target
        self.adversarial_weight = adversarial_weight
        self._adversarial_attack()  # checks the arguments
        self._adversarial_moved: Tensor | slice | None = None
        """During the host's step, which samples have been moved."""

    def _adversarial_attack(self) -> Attack:
        start: Start = "uniform" if self.adversarial_random_start else "clean"
        return Attack.of(self, "adversarial", start, evaluate=self.adversarial_evaluation_mode)

    def asks_teacher(self) -> bool:
        return self.adversarial_target == "consistency"

    def extra_cost(self) -> Cost:
        more = self.adversarial_target == "consistency"
        return Cost(self.adversarial_steps + 2 * more, self.adversarial_steps + more, "a copy of the inputs")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.adversarial_epsilon == 0:
            return super().training_step(batch, batch_idx)
        x, target = self.unpack_batch(batch)
        spot = Perturbable(self, x, _NAME)
        if self.adversarial_target == "consistency":
            # The host's step first: within autocast, weights that a pass without graph cast would have no gradient.
            return self._add_consistency(super().training_step(batch, batch_idx), spot, target)
        delta = self.kept_for_replay(
            "adversarial",
            lambda: self._adversarial_attack().perturb(self, spot, lambda z: error_odds(_checked(z), target)),
        )
        self._adversarial_moved = moved = self._adversarial_choice(spot)
        if isinstance(moved, Tensor):
            delta = [torch.where(of_samples(moved, d), d, 0.0) for d in delta]
        self.log_term(
            "adversarial_perturbation", self._adversarial_attack().size(self, spot, [d[moved] for d in delta])
        )
        try:
            with spot.moved(delta) as moved_x:
                return super().training_step(self.pack_batch(batch, moved_x, target), batch_idx)
        finally:
            self._adversarial_moved = None

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = super().compute_loss(logits, target)
        moved = self._adversarial_moved
        # Which rows of the batch these logits are is known only where the host has not reshaped them.
        if moved is not None and self.training and (isinstance(moved, slice) or len(moved) == len(logits)):
            log_adversarial(self, "adversarial", logits[moved], target[moved], loss_too=True)
        return loss

    def _adversarial_choice(self, spot: Perturbable) -> Tensor | slice:
        """Which samples are moved: all but the clean share, and at least one."""
        if not self.adversarial_clean_share:
            return slice(None)
        first = spot.clean[0]
        clean = min(round(self.adversarial_clean_share * len(first)), len(first) - 1)
        moved = torch.ones(len(first), dtype=torch.bool, device=first.device)
        moved[torch.randperm(len(first), device=first.device)[:clean]] = False
        return moved

    def _add_consistency(self, output: Any, spot: Perturbable, target: Tensor) -> Any:
        if output is None:
            return None
        # A teacher's pass is none of the student's: its own batch norm may keep statistics of it.
        taught = self.teacher_module() is not None
        with nullcontext() if taught else inner_pass(self, evaluate=self.adversarial_evaluation_mode):
            reference = _checked(self.pseudo_logits(spot.x)).detach()
        positions = reference[:, 0].numel()
        delta = self.kept_for_replay(
            "adversarial",
            lambda: self._adversarial_attack().perturb(self, spot, lambda z: positions * kl_divergence(reference, z)),
        )
        self.log_term("adversarial_perturbation", self._adversarial_attack().size(self, spot, delta))
        logits = spot.logits(delta)
        log_adversarial(self, "adversarial", logits, target)
        return self.add_term("adversarial", output, kl_divergence(reference, logits), self.adversarial_weight)


def _checked(logits: Tensor) -> Tensor:
    check_class_logits(logits, _NAME)
    return logits
