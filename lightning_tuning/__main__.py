"""The command ``lightning-tuning``, also ``python -m lightning_tuning``."""

import os
import sys


def main() -> int:
    """Load the command line, which takes seconds, and run it; Ctrl-C meanwhile ends it quietly."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for classes of the user's, my_module.MyModel; ``python -m`` has it already
    try:
        from lightning_tuning.cli import main as run
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
