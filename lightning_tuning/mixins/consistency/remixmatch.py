"""ReMixMatch: MixMatch with aligned guesses, strong views anchored to them, and rotations to predict."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from lightning_tuning.errors import InvalidValueError, check_choice, check_count, check_range
from lightning_tuning.functional import labeled_part, sharpen
from lightning_tuning.functional.precision import at_least_float32
from lightning_tuning.mixins.distribution_alignment import DistributionAlignment
from lightning_tuning.mixins.families import alternatives
from lightning_tuning.mixins.mixed_streams import MixedStreamsMixin
from lightning_tuning.mixins.mixing import noting_soft_target, soft_target
from lightning_tuning.mixins.plan import Cost
from lightning_tuning.mixins.ramps import check_ramp
from lightning_tuning.mixins.rotation import RotationHead, linear_layers, rotation_head


class ReMixMatchMixin(MixedStreamsMixin):
    """MixMatch with distribution alignment and augmentation anchoring (Berthelot et al., 2020).

    The guess is the prediction on the weakly augmented view, multiplied by the share of each class among the labels
    over its share in the last predictions, and sharpened. It is the target of all strongly augmented views and of the
    weak one. Labelled inputs and all these views are mixed with one another, as mixup does; the host's own step gets
    the mixed labelled inputs, with probabilities ``[N, C]`` as target, and the mixed unlabelled ones add a cross
    entropy. Two terms are on the first strong view as it is: its cross entropy, and that of telling by how many
    quarters the image was turned. Batches are ``{"labeled": <the host's batch>, "unlabeled": {"weak": x, "strong":
    x}}``, with more views as ``strong_2`` and so on. With a teacher mixin left of it the teacher guesses.

    Args:
        remixmatch_weight: Factor of the mixed unlabelled inputs' cross entropy, >= 0; the paper's 1.5. Off: 0.
        remixmatch_premix_weight: Factor of the unmixed strong view's cross entropy, >= 0; 0: none.
        remixmatch_rotation_weight: Factor of the rotation loss, >= 0; it takes square images ``[N, C, H, H]``. 0: none,
            as for all other inputs.
        remixmatch_temperature: Temperature that the guess is sharpened with, in (0, 1]; 1 leaves it as it is.
        remixmatch_alpha: Parameter of the Beta distribution of the mixture's shares, > 0; the paper's 0.75.
        remixmatch_window: Batches whose predictions are averaged for the alignment, at least 1; the paper's 128.
        remixmatch_ramp: How the first two weights rise from the start on: ``linear``, ``sigmoid`` or ``cosine``, and a
            length, as in ``"linear 16000 steps"``. None: the full weight at once.
        remixmatch_statistics: Whether batch norm sees the mixed labelled and unlabelled inputs as one batch (``joint``,
            near to the authors' interleaving) or as batches apart (``separate``). Without batch norm they always go
            through the network as one.
        remixmatch_features: Name of the ``nn.Linear`` whose inputs are the features that the rotation is told from, a
            regular expression that matches the whole name. None: the module's last one.

    Raises:
        InvalidValueError: An argument is out of range, the batch is of another form, an input cannot be mixed or
            turned, or there is no such layer.

    Source: Berthelot et al., 2020, "ReMixMatch: semi-supervised learning with distribution alignment and augmentation
    anchoring", section 3, algorithm 1 and equations 3 and 4. The augmentation is the data's; CTAugment is not part of
    it.
    """

    stem = "remixmatch"
    off = {"remixmatch_weight": 0.0}
    needs = ("training_step", "forward")
    changes = ("batch", "target", "loss", "buffers")
    whole_batch = "mixes each sample with another of its batch"
    tasks = ("multiclass",)
    conflicts = alternatives("remixmatch")

    remixmatch_state: DistributionAlignment
    remixmatch_head: RotationHead

    def __init__(
        self,
        *args: Any,
        remixmatch_weight: float = 1.5,
        remixmatch_premix_weight: float = 0.5,
        remixmatch_rotation_weight: float = 0.5,
        remixmatch_temperature: float = 0.5,
        remixmatch_alpha: float = 0.75,
        remixmatch_window: int = 128,
        remixmatch_ramp: str | None = None,
        remixmatch_statistics: Literal["joint", "separate"] = "joint",
        remixmatch_features: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("remixmatch_weight", remixmatch_weight)
        check_range("remixmatch_premix_weight", remixmatch_premix_weight)
        check_range("remixmatch_rotation_weight", remixmatch_rotation_weight)
        check_range("remixmatch_temperature", remixmatch_temperature, 0.0, 1.0, open_low=True)
        check_range("remixmatch_alpha", remixmatch_alpha, open_low=True)
        check_count("remixmatch_window", remixmatch_window, 1)
        check_choice("remixmatch_statistics", remixmatch_statistics, ("joint", "separate"))
        self.remixmatch_weight = remixmatch_weight
        self.remixmatch_premix_weight = remixmatch_premix_weight
        self.remixmatch_rotation_weight = remixmatch_rotation_weight
        self.remixmatch_temperature = remixmatch_temperature
        self.remixmatch_alpha = remixmatch_alpha
        self.remixmatch_window = remixmatch_window
        self.remixmatch_ramp = check_ramp("remixmatch_ramp", remixmatch_ramp)
        self.remixmatch_statistics = remixmatch_statistics
        self.remixmatch_features = remixmatch_features
        if remixmatch_weight:
            self.remixmatch_state = DistributionAlignment(self.class_count("ReMixMatchMixin"), remixmatch_window)
            self._make_rotation_head()

    def configure_model(self) -> None:
        super().configure_model()
        self._make_rotation_head()  # for a host that builds its layers here

    def _make_rotation_head(self) -> None:
        if self._remixmatch_rotates and "remixmatch_head" not in self._modules:
            head = rotation_head(self, self.remixmatch_features)
            if head is not None:
                self.remixmatch_head = head

    @property
    def _remixmatch_rotates(self) -> bool:
        return bool(self.remixmatch_weight and self.remixmatch_rotation_weight)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if not self._remixmatch_rotates:
            return
        if "remixmatch_head" not in self._modules:
            names = ", ".join(linear_layers(self)) or "none"
            raise InvalidValueError(
                "ReMixMatchMixin finds no layer to tell rotations from: remixmatch_features is "
                f"{self.remixmatch_features!r}, and the nn.Linear layers of {self._host_name} are: {names}. Name one "
                "of them, or write remixmatch_rotation_weight=0."
            )
        trained = {id(p) for o in self.trainer.optimizers for group in o.param_groups for p in group["params"]}
        if id(self.remixmatch_head.weight) not in trained:
            raise InvalidValueError(
                f"No optimizer has the parameters of remixmatch_head, by which ReMixMatchMixin tells rotations. Give "
                f"self.parameters() to the optimizer in {self._host_name}.configure_optimizers, or write "
                "remixmatch_rotation_weight=0."
            )

    def extra_cost(self) -> Cost:
        passes = 2 + (self.remixmatch_premix_weight > 0) + (self.remixmatch_rotation_weight > 0)
        return Cost(1 + passes, passes, "the activations of the unlabelled views")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        # A scheduled weight may pass 0; a head that got no gradient then would make DDP wait for it.
        if self.remixmatch_weight == 0 and "remixmatch_head" not in self._modules:
            return super().training_step(batch, batch_idx)
        unlabeled = self.unlabeled_of(batch, "ReMixMatchMixin", two_views=True)
        views = [*unlabeled.named("strong"), unlabeled.weak]
        self._check_mixable("ReMixMatchMixin", batch, views)
        guess = self._remixmatch_guess(batch, unlabeled.weak)
        mixed = self._mix_streams("ReMixMatchMixin", batch, views, guess, self.remixmatch_alpha)
        forward = self.along(mixed.x, joint=self.remixmatch_statistics == "joint")
        premix = self.along(unlabeled.strong) if self.remixmatch_premix_weight else None
        with noting_soft_target("ReMixMatchMixin", mixed.softened):
            output = super().training_step(mixed.batch, batch_idx)
        if output is None:
            return None
        self._log_precision("remixmatch", guess, unlabeled)
        loss = F.cross_entropy(at_least_float32(forward()), mixed.target)
        output = self.add_term("remixmatch", output, loss, self.ramped(self.remixmatch_weight, self.remixmatch_ramp))
        if premix is not None:
            loss = F.cross_entropy(at_least_float32(premix()), guess)
            weight = self.ramped(self.remixmatch_premix_weight, self.remixmatch_ramp)
            output = self.add_term("remixmatch_premix", output, loss, weight)
        if "remixmatch_head" in self._modules:
            loss = self.remixmatch_head.loss(self, unlabeled.strong, "ReMixMatchMixin")
            output = self.add_term("remixmatch_rotation", output, loss, self.remixmatch_rotation_weight)
        return output

    def _remixmatch_guess(self, batch: Any, weak: Any) -> Tensor:
        """The aligned and sharpened prediction on the weak view, ``[N, C, ...]``."""
        predicted = self._predicted("ReMixMatchMixin", [weak])
        _, target = self.unpack_batch(labeled_part(batch))
        labels = soft_target(self, "ReMixMatchMixin", target).to(predicted.dtype)
        aligned = self.remixmatch_state(predicted, labels, record=not self.replaying)
        return sharpen(aligned, self.remixmatch_temperature)
