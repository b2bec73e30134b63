"""The command line ``lightning-tuning``: LightningCLI with presets, one folder for each run, and errors in one line."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden

# Imported for their names: a class that is imported can be written without its module.
from lightning_tuning import __version__, callbacks, data, mixins, modules  # noqa: F401
from lightning_tuning.callbacks._pictures import show_picture
from lightning_tuning.callbacks.save_on_signal import EXIT_CODE as SIGTERM_CODE
from lightning_tuning.checkpoint_file import read_checkpoint
from lightning_tuning.cli_audit import COMMAND as AUDIT
from lightning_tuning.cli_audit import HELP as AUDIT_HELP
from lightning_tuning.cli_audit import audit_parser, run_audit
from lightning_tuning.cli_parser import ConfigOrPreset, TuningParser, default_name, raised_by_constructor
from lightning_tuning.cli_plot import COMMAND as PLOT
from lightning_tuning.cli_plot import PlotConfig, plot_schedule
from lightning_tuning.cli_resume import COMMAND as CHECK
from lightning_tuning.cli_resume import HELP as CHECK_HELP
from lightning_tuning.cli_resume import CheckConfig, check_configuration
from lightning_tuning.errors import InvalidValueError, TuningError
from lightning_tuning.export import export
from lightning_tuning.presets import preset_of
from lightning_tuning.presets.checks import check_runnable, check_together
from lightning_tuning.runs.changed_arguments import ChangedArguments, changed_arguments, check_seed
from lightning_tuning.runs.checkpoint_io import SafeCheckpointIO
from lightning_tuning.runs.checkpoints import default_checkpoints
from lightning_tuning.runs.config import RunConfig
from lightning_tuning.runs.curves import save_curves
from lightning_tuning.runs.facts import LogFacts
from lightning_tuning.runs.find_checkpoint import find_checkpoint, model_of_checkpoint
from lightning_tuning.runs.folder import run_folder
from lightning_tuning.runs.global_batch import GlobalBatch
from lightning_tuning.runs.journal import JournalLogger, write_json
from lightning_tuning.runs.quiet import quiet
from lightning_tuning.runs.summary import checkpoint_to_test, format_summary, summarize
from lightning_tuning.runs.wandb_logger import ResilientWandbLogger

_WITHOUT_TRAINING = ("plan", PLOT, CHECK)
"""Commands that neither make the run's Trainer nor its folder."""
_EXPORT_HELP = "Write the weights of a checkpoint as a safetensors file with JSON metadata."


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: The arguments; default: those of the process.

    Returns:
        The exit code: 0 done, 1 ``audit`` found errors in the data or ``check-resume`` a
        difference, 2 the user can mend it (one message, no traceback
        unless ``--debug``), 3 a guard stopped the training (likewise), 130 Ctrl-C, 143 SIGTERM. Any other error is
        raised, so that it leaves its traceback and the code 1.
    """
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if args[:1] == ["list"] and "--help" not in args and "-h" not in args:
        from lightning_tuning.cli_list import listing

        print(listing())
        return 0
    try:
        if args[:1] == ["export"]:
            print(f"Written: {export(**_export_parser().parse_args(args[1:]).as_dict())}")
            return 0
        with quiet():
            if args[:1] == [AUDIT]:
                return run_audit(args[1:])
            TuningCLI(args)
    except (TuningError, MisconfigurationException) as error:
        if debug:
            raise
        print(f"lightning-tuning: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, TuningError) else 2
    except RuntimeError as error:
        if debug or not (message := _explained(str(error))):
            raise
        print(f"lightning-tuning: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        return _interrupted(str(interrupt))
    except SIGTERMException as stop:
        return stop.code if isinstance(stop.code, int) else SIGTERM_CODE
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            return _interrupted()
        if debug and end.__cause__ is not None:
            raise end.__cause__ from None
        if isinstance(end.code, str):
            raise
        return end.code or 0
    return 0


def _export_parser() -> TuningParser:
    parser = TuningParser(prog="lightning-tuning export", description=_EXPORT_HELP)
    parser.add_function_arguments(export)
    return parser


def _explained(message: str) -> str | None:
    """A message for those of Lightning's and torch's RuntimeErrors that the settings are the cause of."""
    if message.startswith("Early stopping conditioned on"):
        return message
    if twice := re.match("Found more than one stateful callback of type `(.+?)`", message):
        return f"trainer.callbacks lists {twice[1]} twice, and a checkpoint cannot tell the two apart. Leave one out."
    if message.startswith("Error(s) in loading state_dict"):
        first = " ".join(message.splitlines()[1].split())
        return f"The checkpoint does not fit the model: {first} Give the model the arguments that it was trained with."
    return None


def _interrupted(message: str = "") -> int:
    print(message or "Interrupted.", file=sys.stderr)
    return 130


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
        super()._add_subcommands(parser, **kwargs)
        subcommands = parser._subcommands_action
        assert subcommands is not None  # made by super
        help_text = "Print what the techniques of a configuration will do in each step, without training."
        self._subcommand_parsers["plan"] = self._prepare_subcommand_parser(Trainer, "fit", description=help_text)
        subcommands.add_subcommand("plan", self._subcommand_parsers["plan"], help=help_text)
        help_text = "Draw the schedules of a configuration, without training."
        self._subcommand_parsers[PLOT] = self._prepare_subcommand_parser(Trainer, "fit", description=help_text)
        self._subcommand_parsers[PLOT].add_class_arguments(PlotConfig, "plot")
        subcommands.add_subcommand(PLOT, self._subcommand_parsers[PLOT], help=help_text)
        self._subcommand_parsers[CHECK] = self._prepare_subcommand_parser(Trainer, "fit", description=CHECK_HELP)
        self._subcommand_parsers[CHECK].add_class_arguments(CheckConfig, "check")
        subcommands.add_subcommand(CHECK, self._subcommand_parsers[CHECK], help=CHECK_HELP)
        subcommands.add_subcommand("export", _export_parser(), help=_EXPORT_HELP)
        subcommands.add_subcommand(AUDIT, audit_parser(), help=AUDIT_HELP)
        help_text = "Print the techniques, callbacks and presets there are."
        subcommands.add_subcommand("list", ArgumentParser(description=help_text), help=help_text)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        # A checkpoint is data: loading one must not run code. The summary replaces Lightning's table of metrics.
        parser.set_defaults(weights_only=True, **({"verbose": False} if subcommand in ("validate", "test") else {}))
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)
        config = self.config[self.config.subcommand]
        config.run.name = config.run.name or default_name(config.config, config.model.class_path)
        if config.ckpt_path == "auto":
            config.ckpt_path = "last" if self._has_run_before(config.run) else None
        path = find_checkpoint(config.ckpt_path, config.run)
        if path is None:
            return
        if not Path(path).is_dir():
            content = read_checkpoint(path)
            if self.config.subcommand == "fit" and (seed := self._seed_given(config, args)) is not None:
                check_seed(seed, content.get("exact_resume"))
            if model := model_of_checkpoint(path, content, getattr(config.model, "class_path", None)):
                # Before the configuration files and the flags: what is written there wins.
                name = config.run.name
                self.config = parser.parse_args([args[0], f"--config={json.dumps({'model': model})}", *args[1:]])
                config = self.config[self.config.subcommand]
                config.run.name = name
                arguments = config.model.init_args.as_dict()
                self._changed = changed_arguments(model["init_args"], arguments)
        config.ckpt_path = str(path)

    def _has_run_before(self, run: RunConfig) -> bool:
        return any(Path(run.dir, run.name or "").glob("*/checkpoints/last.ckpt"))

    def _seed_given(self, config: Any, args: Sequence[str]) -> int | bool | None:
        """``seed_everything`` if the user wrote it, as far as can be told from its value."""
        written = any(str(arg).startswith("--seed_everything") for arg in args)
        return config.seed_everything if written or config.seed_everything != self.seed_everything_default else None

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
        global_batch = GlobalBatch(self._get(self.config_init, "run").global_batch_size)
        if trainer.barebones:
            self.save_config_callback = None
            return super().instantiate_trainer(callbacks=[global_batch, *_as_list(trainer.callbacks)], **kwargs)
        if trainer.default_root_dir is not None:
            raise InvalidValueError(
                f"trainer.default_root_dir is {trainer.default_root_dir!r}, but every run has its own folder. "
                f"Write --run.dir={trainer.default_root_dir}"
            )
        given = _as_list(trainer.callbacks)
        loggers = [logger for logger in _as_list(trainer.logger) if not isinstance(logger, bool)]
        kwargs["callbacks"] = [global_batch, *given, *self._default_callbacks(given, trainer)]
        kwargs["logger"] = [JournalLogger(self.folder), *loggers]
        kwargs["plugins"] = _plugins(_as_list(trainer.plugins), trainer.strategy)
        try:
            return super().instantiate_trainer(default_root_dir=str(self.folder), **kwargs)
        except (ValueError, ImportError) as error:  # a setting that the Trainer refuses, or a package that it needs
            raise InvalidValueError(str(error)) from error

    def _default_callbacks(self, given: Sequence[Callback], trainer: Any) -> list[Callback]:
        """Those that a run has unless the user lists one of the same class."""
        defaults: list[Callback] = [
            callbacks.ExactResume(),
            callbacks.SaveOnSignal(),
            callbacks.MonitorCheck(),
            LogFacts(self._presets()),
        ]
        if trainer.log_every_n_steps != 0:  # or these would be called at each step for nothing
            defaults += [callbacks.GradientNorm(), LearningRateMonitor(logging_interval="step")]
        missing = [d for d in defaults if not any(isinstance(g, type(d)) for g in given)]
        run: RunConfig = self._get(self.config_init, "run")
        own = [g for g in given if isinstance(g, ModelCheckpoint)]
        if own and run.monitor not in (None, *(c.monitor for c in own)):
            raise InvalidValueError(
                f"run.monitor is {run.monitor!r}, but the configuration has a ModelCheckpoint of its own, which "
                f"replaces the one that run.monitor would make. Give it monitor: {run.monitor}, or write "
                "--run.monitor=null"
            )
        if self._changed:
            missing.append(ChangedArguments(self._changed))
        if self.subcommand == "fit" and trainer.enable_checkpointing is not False and not own:
            missing += default_checkpoints(run.monitor, run.mode)
        return missing

    def _wandb_in_folder(self, cls: type[WandbLogger], *args: Any, **kwargs: Any) -> WandbLogger:
        if kwargs.get("save_dir", ".") == "." and kwargs.get("dir") is None:
            kwargs["save_dir"] = str(self.folder)
        path = self._get(self.config, "ckpt_path")
        if issubclass(cls, ResilientWandbLogger) and self.subcommand == "fit" and path and Path(path).is_file():
            kwargs["ckpt_path"] = kwargs.get("ckpt_path") or path
        logger = cls(*args, **kwargs)
        if logger._wandb_init.get("anonymous", "") is None:
            del logger._wandb_init["anonymous"]  # wandb warns of this setting even when it is None
        return logger

    # Running.

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand not in _WITHOUT_TRAINING:
            return super()._run_subcommand(subcommand)
        trainer = self._get(self.config_init, "trainer")
        given = _as_list(trainer.callbacks)
        if subcommand == PLOT:
            plot, run = self._get(self.config_init, "plot"), self._get(self.config_init, "run")
            given.insert(0, GlobalBatch(run.global_batch_size))
            print(plot_schedule(plot, run.name, self.model, self.datamodule, trainer.as_dict(), given))
            return
        if subcommand == CHECK:
            report = check_configuration(self._get(self.config_init, "check"), self._make_run)
            print(report)
            if not report.ok:
                raise SystemExit(1)
            return
        planned = mixins.plan(self.model, given)
        print(planned)
        if planned.problems:
            raise InvalidValueError("This would not train: see the problem above.")

    def _make_run(self) -> tuple[LightningModule, Any, dict[str, Any]]:
        """Module, data and the Trainer's arguments, made anew."""
        self.instantiate_classes()
        trainer = self._get(self.config_init, "trainer")
        given = _as_list(trainer.callbacks)
        settings = {**trainer.as_dict(), "callbacks": [*given, *self._default_callbacks(given, trainer)]}
        return self.model, self.datamodule, settings

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Train, draw the curves (also after Ctrl-C or an error), test the best checkpoint, print the summary."""
        try:
            self.trainer.fit(model, **kwargs)
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):
                last = self.folder / "checkpoints" / "last.ckpt"
                hint = f" Continue from the last epoch's end with --ckpt_path={last}" if last.exists() else ""
                raise KeyboardInterrupt(f"Interrupted after step {self.trainer.global_step}.{hint}") from None
            saved = next((c.saved for c in self.trainer.callbacks if isinstance(c, callbacks.SaveOnSignal)), None)  # type: ignore[attr-defined]
            if saved and self.trainer.is_global_zero:
                step = self.trainer.global_step
                print(f"Stopped by SIGTERM after step {step}. Continue with --ckpt_path={saved}", file=sys.stderr)
            raise
        finally:
            self._draw_curves()
        self._finish(self._final_test(model, kwargs.get("datamodule")))

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
            torch.save(predictions, path)
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

    def _draw_curves(self) -> None:
        if self._folder and self.trainer.is_global_zero:
            try:
                if (path := save_curves(self._folder)) is not None:
                    show_picture(self.trainer, path)
            except Exception as error:  # never in place of the error that ended the training
                print(f"lightning-tuning: the curves could not be drawn: {error!r}", file=sys.stderr)

    def _finish(self, results: list[Any], **extra: Any) -> None:
        """Save and print the summary."""
        if self._folder is None or not self.trainer.is_global_zero:
            return
        metrics = {name: value for result in results for name, value in result.items()}
        summary = {**summarize(self.trainer, metrics, self._folder, time.monotonic() - self._start), **extra}
        write_json(self._folder / "summary.json", summary)
        for logger in self.trainer.loggers:
            if isinstance(logger, ResilientWandbLogger) and logger.log_reports:
                logger.log_folder(self._folder)
        print(format_summary(summary))


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _plugins(given: list[Any], strategy: Any) -> list[Any]:
    """Those of the user, and the writer of checkpoints unless there is another."""
    other = any(isinstance(plugin, CheckpointIO) for plugin in given) or getattr(strategy, "_checkpoint_io", None)
    return given if other or "xla" in str(strategy) else [*given, SafeCheckpointIO()]
