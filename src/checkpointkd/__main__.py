"""Run the command line as `python -m checkpointkd`, for torchrun and other launchers."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current folder, whose files would replace installed packages

from .cli import main

sys.exit(main())
