"""Trajectories: run folders, the checkpoints in them, and their addresses."""

from .addresses import Address, ensemble_of, find, resolve, say_if_grown
from .description import describe, known
from .foreign import GIVEN, adopt, adopt_again
from .formats import look
from .run_folder import RunFolder, provenance, refuse_inside_run
from .trajectory import Checkpoint, Trajectory, fresh_network, noted, open_trajectory

__all__ = [
    "GIVEN",
    "Address",
    "Checkpoint",
    "RunFolder",
    "Trajectory",
    "adopt",
    "adopt_again",
    "describe",
    "ensemble_of",
    "find",
    "fresh_network",
    "known",
    "look",
    "noted",
    "open_trajectory",
    "provenance",
    "refuse_inside_run",
    "resolve",
    "say_if_grown",
]
