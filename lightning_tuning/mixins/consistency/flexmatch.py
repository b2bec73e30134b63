"""FlexMatch: FixMatch with a threshold for each class, lower where less has been learned."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_tuning.errors import check_choice, check_count, check_range
from lightning_tuning.mixins.families import alternatives
from lightning_tuning.mixins.gates import CurriculumThreshold
from lightning_tuning.mixins.pseudo_labels import PseudoLabelsMixin
from lightning_tuning.mixins.ramps import check_ramp


class FlexMatchMixin(PseudoLabelsMixin):
    """Learns from pseudo labels with curriculum thresholds (Zhang et al., 2021).

    It remembers of each unlabelled sample the last class that its weak view was given with at least the fixed
    threshold. The fewer samples a class has, the lower is its own threshold. Batches are ``{"labeled": <the host's
    batch>, "unlabeled": {"weak": x, "strong": x, "index": ids}}``; a datamodule of this package gives such ones.

    Args:
        flexmatch_weight: Factor of the unlabelled loss, >= 0; the paper's 1. Off: 0.
        flexmatch_threshold: The fixed threshold, in ``[0, 1]``, which the best learned class has; the paper's 0.95.
        flexmatch_warmup: Whether all thresholds stay low until most samples have had a confident label.
        flexmatch_samples: The number of unlabelled samples, whose ids are from 0 to one below. None: the datamodule's
            attribute ``num_unlabeled``.
        flexmatch_ramp: How the weight rises from the start on: ``linear``, ``sigmoid`` or ``cosine``, and a length, as
            in ``"linear 40%"``, ``"sigmoid 5 epochs"`` or ``"cosine 2000 steps"``. None: the full weight at once.
        flexmatch_statistics: Whether batch norm sees the labelled and the strongly augmented inputs as batches apart
            (``separate``) or as one (``joint``). Without batch norm they always go through the network as one, and
            inputs whose pseudo labels do not count are left out.

    Raises:
        InvalidValueError: An argument is out of range, or the batch is of another form or has no ids.
        MisconfigurationException: Nobody says how many unlabelled samples there are.

    Source: Zhang et al., 2021, "FlexMatch: boosting semi-supervised learning with curriculum pseudo labeling",
    equations 5 to 12, algorithm 1.
    """

    stem = "flexmatch"
    off = {"flexmatch_weight": 0.0}
    needs = ("training_step", "forward")
    changes = ("batch", "loss", "buffers")
    whole_batch = "counts the batch's confident samples for its thresholds"
    tasks = ("multiclass",)
    conflicts = alternatives("flexmatch")
    needs_streams = True
    sharded = True

    def __init__(
        self,
        *args: Any,
        flexmatch_weight: float = 1.0,
        flexmatch_threshold: float = 0.95,
        flexmatch_warmup: bool = True,
        flexmatch_samples: int | None = None,
        flexmatch_ramp: str | None = None,
        flexmatch_statistics: Literal["separate", "joint"] = "separate",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("flexmatch_weight", flexmatch_weight)
        check_range("flexmatch_threshold", flexmatch_threshold, 0.0, 1.0)
        check_count("flexmatch_samples", flexmatch_samples, 1, optional=True)
        check_choice("flexmatch_statistics", flexmatch_statistics, ("separate", "joint"))
        self.flexmatch_weight = flexmatch_weight
        self.flexmatch_threshold = flexmatch_threshold
        self.flexmatch_warmup = flexmatch_warmup
        self.flexmatch_samples = flexmatch_samples
        self.flexmatch_ramp = check_ramp("flexmatch_ramp", flexmatch_ramp)
        self.flexmatch_statistics = flexmatch_statistics
        if flexmatch_weight > 0:
            count = self.class_count("FlexMatchMixin")
            self.flexmatch_state = CurriculumThreshold(count, flexmatch_samples, flexmatch_threshold, flexmatch_warmup)

    def setup(self, stage: str) -> None:
        """Learns from the datamodule how many unlabelled samples there are: before DDP looks for buffers."""
        super().setup(stage)
        if stage != "fit" or self.flexmatch_weight == 0 or self.flexmatch_samples is not None:
            return
        known = len(self.flexmatch_state.labels)
        samples = getattr(self.trainer.datamodule, "num_unlabeled", None) or known  # type: ignore[attr-defined]
        if not samples:
            raise MisconfigurationException(
                "FlexMatchMixin keeps a label for each unlabelled sample and does not know how many there are. Write "
                "flexmatch_samples=<their number>, or train with a datamodule that has an attribute num_unlabeled."
            )
        if samples != known:  # also where an earlier fit had other data
            self.flexmatch_state.resize(samples)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.flexmatch_weight == 0:
            return super().training_step(batch, batch_idx)
        self.flexmatch_state.fixed = self.flexmatch_threshold
        return self._pseudo_label_step(
            "flexmatch",
            batch,
            batch_idx,
            weight=self.ramped(self.flexmatch_weight, self.flexmatch_ramp),
            gate=self.flexmatch_state,
            joint=self.flexmatch_statistics == "joint",
        )
