"""Which of Lightning's test files are run, and which of their tests are not, for what reason."""

from __future__ import annotations

import re

FILES = {
    "callbacks/test_early_stopping.py": "EarlyStop",
    "callbacks/test_weight_averaging.py": "WeightEMA",
    "callbacks/test_model_checkpoint_additional_cases.py": "RunCheckpoint",
    "callbacks/test_model_checkpoint_edge_cases.py": "RunCheckpoint",
    "callbacks/test_model_checkpoint_manual_opt.py": "RunCheckpoint",
    "callbacks/test_model_checkpoint_step_interval_val_metric.py": "RunCheckpoint",
    "checkpointing/test_checkpoint_callback_frequency.py": "RunCheckpoint",
    "checkpointing/test_model_checkpoint.py": "RunCheckpoint",
    "checkpointing/test_trainer_checkpoint.py": "RunCheckpoint",
}
"""Below ``tests/tests_pytorch`` of a checkout, each with the class that it tests here."""

DESELECTED = {
    # EarlyStopping
    r"test_early_stopping_no_extraneous_invocations": "replaces the private method `_run_early_stopping_check`",
    r"test_min_epochs_min_steps_global_step": "replaces the private method `_evaluate_stopping_criteria`",
    r"test_check_on_train_epoch_end_smart_handling": "replaces the private method `_evaluate_stopping_criteria`",
    r"test_early_stopping_squeezes": "replaces the private method `_evaluate_stopping_criteria`",
    r"test_early_stopping_log_info": "tests the private function `_log_info`",
    r"test_early_stopping_mode_options": "wants another class and text of the error; ours is InvalidValueError",
    r"test_early_stopping_reasons\[None-.*NOT_STOPPED-": "reads a state of Lightning before 2.6; ours is another",
    # ModelCheckpoint
    r"test_model_checkpoint_saveload_ckpt": "wants the best checkpoint forgotten in a new folder; ours is carried over",
    # WeightAveraging
    r"test_weight_averaging_deepcopy": "looks into the copy of the module that Lightning makes; WeightEMA makes none",
    r"test_ema_configure_model": "looks into the copy of the module that Lightning makes; WeightEMA makes none",
    r"test_swa$": "chooses its epochs by overriding `should_update`; WeightEMA has none",
    r"test_ema_weight_averaging_should_update": "tests `should_update`; WeightEMA has none",
}
"""Beginnings of test names, as regular expressions, and why a test of that name is not run."""


def reason_to_deselect(name: str) -> str | None:
    """Why the test of this name is not run; None if it is."""
    return next((reason for pattern, reason in DESELECTED.items() if re.match(pattern, name)), None)
