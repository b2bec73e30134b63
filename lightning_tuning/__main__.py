"""``python -m lightning_tuning`` is ``lightning-tuning``."""

import sys

from lightning_tuning.cli import main

sys.exit(main())
