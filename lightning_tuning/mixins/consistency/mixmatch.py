"""MixMatch: guessed labels of unlabelled inputs, mixed with the labelled ones."""

from __future__ import annotations

from typing import Any, Literal

from lightning_tuning.errors import check_choice, check_range
from lightning_tuning.functional import mixmatch_loss, sharpen
from lightning_tuning.mixins.families import alternatives
from lightning_tuning.mixins.mixed_streams import MixedStreamsMixin
from lightning_tuning.mixins.mixing import noting_soft_target
from lightning_tuning.mixins.plan import Cost
from lightning_tuning.mixins.ramps import check_ramp


class MixMatchMixin(MixedStreamsMixin):
    """Guesses the labels of unlabelled inputs and mixes these with the labelled ones (Berthelot et al., 2019).

    The guess is the mean of the predictions on all weakly augmented views of an input, sharpened. Labelled inputs and
    all these views are then mixed with one another, as mixup does. The host's own step gets the mixed labelled inputs,
    with probabilities ``[N, C]`` as target; the mixed unlabelled ones add the squared error of the probabilities.
    Batches are ``{"labeled": <the host's batch>, "unlabeled": {"weak": x, "strong": x}}``, with more views as
    ``weak_2`` and so on; the strong ones are not used. With a teacher mixin left of it the teacher guesses.

    Args:
        mixmatch_weight: Factor of the unlabelled loss, >= 0; the paper tunes it from 100 on. Off: 0.
        mixmatch_temperature: Temperature that the guess is sharpened with, in (0, 1]; 1 leaves it as it is.
        mixmatch_alpha: Parameter of the Beta distribution of the mixture's shares, > 0; the paper's 0.75.
        mixmatch_ramp: How the weight rises from the start on: ``linear``, ``sigmoid`` or ``cosine``, and a length, as
            in ``"linear 16000 steps"``, the paper's. None: the full weight at once.
        mixmatch_statistics: Whether batch norm sees the mixed labelled and unlabelled inputs as one batch (``joint``,
            near to the authors' interleaving) or as batches apart (``separate``). Without batch norm they always go
            through the network as one.

    Raises:
        InvalidValueError: An argument is out of range, the batch is of another form, or an input cannot be mixed.

    Source: Berthelot et al., 2019, "MixMatch: a holistic approach to semi-supervised learning", algorithm 1,
    equations 2 to 11.
    """

    stem = "mixmatch"
    off = {"mixmatch_weight": 0.0}
    needs = ("training_step", "forward")
    changes = ("batch", "target", "loss", "buffers")
    whole_batch = "mixes each sample with another of its batch"
    tasks = ("multiclass",)
    conflicts = alternatives("mixmatch")
    sharded = True

    def __init__(
        self,
        *args: Any,
        mixmatch_weight: float = 100.0,
        mixmatch_temperature: float = 0.5,
        mixmatch_alpha: float = 0.75,
        mixmatch_ramp: str | None = None,
        mixmatch_statistics: Literal["joint", "separate"] = "joint",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("mixmatch_weight", mixmatch_weight)
        check_range("mixmatch_temperature", mixmatch_temperature, 0.0, 1.0, open_low=True)
        check_range("mixmatch_alpha", mixmatch_alpha, open_low=True)
        check_choice("mixmatch_statistics", mixmatch_statistics, ("joint", "separate"))
        self.mixmatch_weight = mixmatch_weight
        self.mixmatch_temperature = mixmatch_temperature
        self.mixmatch_alpha = mixmatch_alpha
        self.mixmatch_ramp = check_ramp("mixmatch_ramp", mixmatch_ramp)
        self.mixmatch_statistics = mixmatch_statistics

    def extra_cost(self) -> Cost:
        return Cost(2, 1, "the activations of the unlabelled views")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.mixmatch_weight == 0:
            return super().training_step(batch, batch_idx)
        unlabeled = self.unlabeled_of(batch, "MixMatchMixin", streams=True)
        views = unlabeled.named("weak")
        self._check_mixable("MixMatchMixin", batch, views)
        guess = sharpen(self._predicted("MixMatchMixin", views), self.mixmatch_temperature)
        mixed = self._mix_streams("MixMatchMixin", batch, views, guess, self.mixmatch_alpha)
        forward = self.along(mixed.x, joint=self.mixmatch_statistics == "joint")
        with noting_soft_target("MixMatchMixin", mixed.softened):
            output = super().training_step(mixed.batch, batch_idx)
        if output is None:
            return None
        self._log_precision("mixmatch", guess, unlabeled)
        loss = mixmatch_loss(forward(), mixed.target)
        return self.add_term("mixmatch", output, loss, self.ramped(self.mixmatch_weight, self.mixmatch_ramp))
