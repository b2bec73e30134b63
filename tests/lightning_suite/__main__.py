"""``python -m tests.lightning_suite --lightning=PATH [options of pytest]``."""

import runpy

# A process that a test spawns repeats the main module's top level, unless it is one of the name `__main__`.
runpy.run_module("tests.lightning_suite.run", run_name="__main__", alter_sys=True)
