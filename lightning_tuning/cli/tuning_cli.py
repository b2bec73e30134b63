"""The command line ``lightning-tuning``: LightningCLI with presets, one folder for each run, and errors in one line."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden

# Imported for their names: a class that is imported can be written without its module.
from lightning_tuning import __version__, callbacks, data, mixins, modules  # noqa: F401
from lightning_tuning.cli.audit import COMMAND as AUDIT
from lightning_tuning.cli.audit import run_audit
from lightning_tuning.cli.check_resume import COMMAND as CHECK
from lightning_tuning.cli.check_resume import CheckConfig, check_configuration
from lightning_tuning.cli.checkpoint import add_resume, parse_with_checkpoint
from lightning_tuning.cli.defaults import all_callbacks, as_list, wandb_logger, with_safe_checkpoints
from lightning_tuning.cli.ending import check_finite, draw_curves, finish, leave_process_group, not_finite
from lightning_tuning.cli.messages import full_disk, stopped, told
from lightning_tuning.cli.pages import ALL_OPTIONS, COMMANDS, answer
from lightning_tuning.cli.parser import ConfigOrPreset, TuningParser, raised_by_constructor
from lightning_tuning.cli.plot_schedule import COMMAND as PLOT
from lightning_tuning.cli.plot_schedule import PlotConfig, plot_schedule
from lightning_tuning.errors import InvalidValueError, check_count
from lightning_tuning.export import export
from lightning_tuning.presets import preset_of
from lightning_tuning.presets.checks import check_runnable, check_together
from lightning_tuning.runs.config import RunConfig
from lightning_tuning.runs.folder import run_folder
from lightning_tuning.runs.journal import JournalLogger
from lightning_tuning.runs.quiet import quiet
from lightning_tuning.runs.summary import checkpoint_to_test
from lightning_tuning.whole_file import write_whole

_WITHOUT_TRAINING = ("plan", PLOT, CHECK)
"""Commands that neither make the run's Trainer nor its folder."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: The arguments; default: those of the process.

    Returns:
        The exit code: 0 done, 1 ``audit`` found errors in the data or ``check-resume`` a difference, 2 the user can
        mend it (one message, no traceback unless ``--debug``), 3 a guard stopped the training (likewise), 130 Ctrl-C,
        143 SIGTERM. Any other error is raised, so that it leaves its traceback and the code 1.
    """
    args = list(sys.argv[1:] if args is None else args)
    if (code := answer(args)) is not None:
        return code
    debug = "--debug" in args
    args = ["--help" if arg == ALL_OPTIONS else arg for arg in args if arg != "--debug"]
    try:
        if args[0] == "export":
            print(f"Written: {export(**_export_parser().parse_args(args[1:]).as_dict())}")
            return 0
        with quiet():
            if args[0] == AUDIT:
                return run_audit(args[1:])
            TuningCLI(args)
            leave_process_group()
    except BaseException as error:
        if (code := told(error, debug)) is None:
            raise
        return code
    return 0


def _export_parser() -> TuningParser:
    parser = TuningParser(prog="lightning-tuning export", description=COMMANDS["export"])
    parser.add_function_arguments(export)
    return parser


class TuningCLI(LightningCLI):
    """A LightningCLI whose runs keep everything in one folder and end with a test and a summary.

    Args:
        args: The arguments, as on the command line; default: those of the process.
    """

    def __init__(self, args: Sequence[str] | None = None) -> None:
        self._folder: Path | None = None
        self._changed: dict[str, tuple[Any, Any]] = {}
        self._start = time.monotonic()
        description = "Train with better generalisation: techniques are keys of the model, hardware is a preset."
        parser_kwargs = {"description": description, "allow_abbrev": False}
        try:
            super().__init__(
                args=list(sys.argv[1:] if args is None else args),
                seed_everything_default=0,
                parser_class=TuningParser,
                parser_kwargs={**parser_kwargs, "version": __version__},
            )
        except (OSError, RuntimeError) as error:
            if self._folder and (full := full_disk(error, self._folder)):
                raise full from error
            raise
        finally:
            if self._folder and self._folder.is_dir() and not any(self._folder.iterdir()):
                self._folder.rmdir()

    # Parsing.

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = self.parser_class(**kwargs)
        if "version" not in kwargs:
            parser.add_argument(
                "-c",
                "--config",
                action=ConfigOrPreset,
                help="A YAML file, or preset:NAME (see `lightning-tuning list`). Of several, later ones win.",
            )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(RunConfig, "run")

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        descriptions = {name: {"description": text} for name, text in COMMANDS.items()}
        super()._add_subcommands(parser, **{**descriptions, **kwargs})
        subcommands = parser._subcommands_action
        assert subcommands is not None  # made by super
        for name in _WITHOUT_TRAINING:
            made = self._prepare_subcommand_parser(Trainer, "fit", **descriptions[name])
            self._subcommand_parsers[name] = made
            subcommands.add_subcommand(name, made, help=COMMANDS[name])
        self._subcommand_parsers[PLOT].add_class_arguments(PlotConfig, "plot")
        self._subcommand_parsers[CHECK].add_class_arguments(CheckConfig, "check")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        # A checkpoint is data: loading one must not run code. The summary replaces Lightning's table of metrics.
        parser.set_defaults(weights_only=True, **({"verbose": False} if subcommand in ("validate", "test") else {}))
        add_resume(parser)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config, self._changed = parse_with_checkpoint(parser, args, self.seed_everything_default)

    def _parse_ckpt_path(self) -> None:
        """Done in ``parse_arguments``, where configuration files and flags can win over the checkpoint."""

    # Construction.

    @property
    def folder(self) -> Path:
        """The run's folder, made at first use."""
        if self._folder is None:
            run = self._get(self.config, "run")
            suffix = "" if self.subcommand == "fit" else f"-{self.subcommand}"
            if self._get(self.config, "trainer").fast_dev_run:
                return Path(run.dir, run.name)
            self._folder = run_folder(run.dir, run.name, suffix)
        return self._folder

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        presets = self._presets()
        check_together(presets)
        check_count("trainer.accumulate_grad_batches", config.trainer.accumulate_grad_batches, 1)
        if self.subcommand in _WITHOUT_TRAINING:
            return
        check_runnable(presets, config.trainer.as_dict())
        self.parser.add_instantiator(self._wandb_in_folder, WandbLogger)

    def _presets(self) -> list[str]:
        paths = self.config[self.subcommand].config or []
        return [name for path in paths if path and (name := preset_of(Path(str(path))))]

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise raised_by_constructor(error) from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = self._get(self.config_init, "trainer")
        if self.subcommand in _WITHOUT_TRAINING:  # which need neither a device nor a folder
            return None  # type: ignore[return-value]
        kwargs["callbacks"] = self._callbacks(trainer)
        if trainer.barebones:
            self.save_config_callback = None
            return super().instantiate_trainer(**kwargs)
        if trainer.default_root_dir is not None:
            raise InvalidValueError(
                f"trainer.default_root_dir is {trainer.default_root_dir!r}, but every run has its own folder. "
                f"Write --run.dir={trainer.default_root_dir}"
            )
        loggers = [logger for logger in as_list(trainer.logger) if not isinstance(logger, bool)]
        kwargs["logger"] = [JournalLogger(self.folder), *loggers]
        kwargs["plugins"] = with_safe_checkpoints(as_list(trainer.plugins), trainer.strategy)
        try:
            return super().instantiate_trainer(default_root_dir=str(self.folder), **kwargs)
        except (ValueError, ImportError) as error:  # a setting that the Trainer refuses, or a package that it needs
            raise InvalidValueError(str(error)) from error

    def _callbacks(self, trainer: Any) -> list[Callback]:
        run, settings = self._get(self.config_init, "run"), self.config[self.subcommand].as_dict()
        trains = self.subcommand == "fit"
        return all_callbacks(trainer, run, self._presets(), self._changed, settings, trains=trains)

    def _wandb_in_folder(self, cls: type[WandbLogger], *args: Any, **kwargs: Any) -> WandbLogger:
        if kwargs.get("save_dir", ".") == "." and kwargs.get("dir") is None:
            kwargs["save_dir"] = str(self.folder)
        resumed = self._get(self.config, "ckpt_path") if self.subcommand == "fit" else None
        return wandb_logger(cls, resumed, *args, **kwargs)

    # Running.

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand not in _WITHOUT_TRAINING:
            return super()._run_subcommand(subcommand)
        trainer = self._get(self.config_init, "trainer")
        if subcommand == PLOT:
            plot, name = self._get(self.config_init, "plot"), self._get(self.config_init, "run").name
            callbacks = self._callbacks(trainer)
            print(plot_schedule(plot, name, self.model, self.datamodule, trainer.as_dict(), callbacks))
            return
        if subcommand == CHECK:
            report = check_configuration(self._get(self.config_init, "check"), self._make_run)
            print(report)
            if not report.ok:
                raise SystemExit(1)
            return
        planned = mixins.plan(self.model, self._callbacks(trainer))
        print(planned)
        if planned.problems:
            raise InvalidValueError("This would not train: see the problem above.")

    def _make_run(self) -> tuple[LightningModule, Any, dict[str, Any]]:
        """Module, data and the Trainer's arguments, made anew."""
        self.instantiate_classes()
        trainer = self._get(self.config_init, "trainer")
        return self.model, self.datamodule, {**trainer.as_dict(), "callbacks": self._callbacks(trainer)}

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Train, draw the curves (also after Ctrl-C or an error), test the best checkpoint, print the summary."""
        try:
            self.trainer.fit(model, **kwargs)
        except SystemExit as end:
            stopped(end, self.trainer, self.folder)
            raise
        finally:
            if self._folder and self.trainer.is_global_zero:
                draw_curves(self.trainer, self._folder)
        broken = not_finite(model)
        self._finish(self._final_test(model, kwargs.get("datamodule")))
        check_finite(broken)

    def validate(self, **kwargs: Any) -> None:
        self._note_initial_weights()
        self._finish(self.trainer.validate(**kwargs))

    def test(self, **kwargs: Any) -> None:
        self._note_initial_weights()
        self._finish(self.trainer.test(**kwargs))

    def predict(self, **kwargs: Any) -> None:
        """Predict and save what ``predict_step`` returned as ``predictions.pt`` (one file for each process)."""
        self._note_initial_weights()
        predictions = self.trainer.predict(**kwargs)
        extra = {}
        if predictions is not None and self._folder:
            rank = f"-{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
            path = Path(self.trainer.log_dir or "", f"predictions{rank}.pt")
            write_whole(predictions, path)
            extra["predictions"] = str(path)
        self._finish([], **extra)

    def _note_initial_weights(self) -> None:
        if self._get(self.config, "ckpt_path") is None:
            rank_zero_info("No --ckpt_path is given: the model is used with its initial weights.")

    def _final_test(self, model: LightningModule, datamodule: Any) -> list[Any]:
        run: RunConfig = self._get(self.config_init, "run")
        has_data = any(is_overridden("test_dataloader", source) for source in (model, datamodule) if source is not None)
        if not (self._folder and run.test and has_data and is_overridden("test_step", model)):
            return []
        path = checkpoint_to_test(self.trainer)
        return self.trainer.test(model, datamodule=datamodule, ckpt_path=path, weights_only=True, verbose=False)

    def _finish(self, results: list[Any], **extra: Any) -> None:
        if self._folder and self.trainer.is_global_zero:
            finish(self.trainer, self._folder, results, time.monotonic() - self._start, **extra)
