"""Trajectories: run folders, the checkpoints in them, and their addresses."""

from .addresses import Address, find, resolve, say_if_grown
from .foreign import adopt, adopt_again
from .formats import look
from .run_folder import RunFolder
from .trajectory import Checkpoint, Trajectory, fresh_network, noted, open_trajectory

__all__ = [
    "Address",
    "Checkpoint",
    "RunFolder",
    "Trajectory",
    "adopt",
    "adopt_again",
    "find",
    "fresh_network",
    "look",
    "noted",
    "open_trajectory",
    "resolve",
    "say_if_grown",
]
