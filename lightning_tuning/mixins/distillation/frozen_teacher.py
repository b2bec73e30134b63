"""A teacher that was trained before and stays as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_tuning.errors import CompositionError, InvalidValueError
from lightning_tuning.mixins.arguments import given_at_load
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.composition import hosts_of
from lightning_tuning.mixins.distilling import ema_gives_labels
from lightning_tuning.mixins.plan import Cost
from lightning_tuning.mixins.teachers import fingerprint, load_teacher
from lightning_tuning.named_code import may_be_named


class FrozenTeacherMixin(TuningMixin):
    """A trained network gives the labels of the techniques that stand right of it, such as distillation.

    It is loaded when training starts, stays in evaluation mode and without gradients, and moves to the module's device
    and precision. It is no part of the module: not of its ``state_dict``, its parameters, its copies. Checkpoints name
    it and keep a digest of its weights, and a run is resumed with the same weights only. To predict with the student
    its file is not needed.

    Args:
        frozen_teacher_checkpoint: Path of the teacher's checkpoint, written by Lightning, or of a file with a state
            dict. It is read without executing code. Off: None, and no class either.
        frozen_teacher_class: Import path, as in ``package.module.Name``, of the LightningModule that the checkpoint is
            of, or of a class or function that returns the network when it is called without arguments; such a network
            gets the checkpoint's weights if there is one. None: the class that the checkpoint names, as those of
            modules with mixins and of the ready hosts do, if it is imported already; or else the module's own.

    Raises:
        InvalidValueError: The class is no text; or, at the start of training, the file, the class or the number of
            classes does not fit.

    Source: Hinton, Vinyals & Dean, 2015, "Distilling the knowledge in a neural network", section 2: the cumbersome
    model is trained first and then fixed.
    """

    stem = "frozen_teacher"
    stage = "teacher"
    off = {"frozen_teacher_checkpoint": None, "frozen_teacher_class": None}
    needs = ("training_step",)
    changes = ("target",)
    sharded = True

    def __init__(
        self,
        *args: Any,
        frozen_teacher_checkpoint: str | None = None,
        frozen_teacher_class: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if frozen_teacher_class is not None and not isinstance(frozen_teacher_class, str):
            raise InvalidValueError(
                f"frozen_teacher_class is {frozen_teacher_class!r}; write its import path as text, as in "
                "'package.module.Name', by which a resumed run finds it again."
            )
        self.frozen_teacher_checkpoint = frozen_teacher_checkpoint
        self.frozen_teacher_class = frozen_teacher_class
        given = given_at_load.get()
        self._frozen_teacher_is_named_by_file = given is not None and "frozen_teacher_class" not in given
        self._frozen_teacher = Unregistered()
        self._frozen_teacher_mark: str | None = None
        self._frozen_teacher_before: str | None = None

    @property
    def _frozen_teacher_is_on(self) -> bool:
        return self.frozen_teacher_checkpoint is not None or self.frozen_teacher_class is not None

    def no_effect(self) -> str | None:
        if any(technique.asks_teacher(self) for technique in self.active_techniques()):
            return None
        return f"no technique of {self._host_name} asks a teacher. Add DistillationMixin with distillation_weight=1."

    def extra_cost(self) -> Cost:
        return Cost(memory="the teacher")

    def teacher_module(self) -> nn.Module | None:
        return self._loaded_frozen_teacher() if self._frozen_teacher_is_on else super().teacher_module()

    def pseudo_logits(self, x: Any) -> Tensor:
        if not self._frozen_teacher_is_on:
            return super().pseudo_logits(x)
        with torch.no_grad():
            return self._loaded_frozen_teacher()(x)

    def _loaded_frozen_teacher(self) -> nn.Module:
        if ema_gives_labels(self):
            raise CompositionError(
                "FrozenTeacherMixin and EMATeacherMixin would both give the labels. Write ema_teacher_labels=False, "
                "so that the frozen teacher gives them, or leave the frozen teacher out."
            )
        if self._frozen_teacher.module is None:
            name = self.frozen_teacher_class
            if self._frozen_teacher_is_named_by_file and name is not None and not may_be_named(name):
                raise InvalidValueError(
                    f"A checkpoint says that frozen_teacher_class is {name!r}, which is no network that is imported "
                    "already, and a checkpoint may not say what is. Give it: load_from_checkpoint(path, "
                    "frozen_teacher_class=...), if that is your class."
                )
            own = hosts_of(type(self))[0]
            teacher = load_teacher(self.frozen_teacher_checkpoint, self.frozen_teacher_class, own)
            self._check_classes(teacher)
            self._frozen_teacher_mark = fingerprint(teacher)
            self._frozen_teacher.module = teacher
        return self._frozen_teacher.module

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._frozen_teacher.module = None  # the file may be another one than at an earlier fit

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if not self._frozen_teacher_is_on:
            return
        teacher = self._loaded_frozen_teacher()
        if self.trainer.ckpt_path is not None and self._frozen_teacher_before not in (None, self._frozen_teacher_mark):
            raise InvalidValueError(
                f"The weights of the teacher {self._frozen_teacher_name} are not those that the checkpoint "
                f"{self.trainer.ckpt_path} was trained with. Give the run the same teacher, or begin a new one from "
                "the student's weights: load_from_checkpoint and fit without ckpt_path."
            )
        if self.trainer.strategy.broadcast(self._frozen_teacher_mark) != self._frozen_teacher_mark:
            raise InvalidValueError(
                f"The teacher {self._frozen_teacher_name} has other weights in each process. Seed the function that "
                "makes it, or name a checkpoint."
            )
        self._frozen_teacher.module = self.trainer.precision_plugin.convert_module(teacher).to(self.device)

    def on_fit_end(self) -> None:
        super().on_fit_end()
        self._frozen_teacher.module = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        mark = self._frozen_teacher_mark or self._frozen_teacher_before
        if self._frozen_teacher_is_on and mark is not None:
            checkpoint["frozen_teacher"] = {"name": self._frozen_teacher_name, "sha256": mark}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._frozen_teacher_before = checkpoint.get("frozen_teacher", {}).get("sha256")

    @property
    def _frozen_teacher_name(self) -> str:
        return str(self.frozen_teacher_checkpoint or self.frozen_teacher_class)

    def _check_classes(self, teacher: nn.Module) -> None:
        theirs = getattr(teacher, "num_classes", None)
        ours = getattr(self, "num_classes", None) or self.hparams.get("num_classes")
        if isinstance(theirs, int) and isinstance(ours, int) and theirs != ours:
            raise InvalidValueError(
                f"The teacher {self._frozen_teacher_name} has {theirs} classes, {self._host_name} has {ours}. Teacher "
                "and student need the same classes in the same order."
            )


class Unregistered:
    """Holds a module that is no part of the one that holds it; copies and pickles go without it."""

    def __init__(self) -> None:
        self.module: nn.Module | None = None

    def __reduce__(self) -> tuple[type, tuple]:
        return Unregistered, ()
