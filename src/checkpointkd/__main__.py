"""Run the command line as `python -m checkpointkd`, for torchrun and other launchers."""

import sys

from .cli import main

sys.exit(main())
