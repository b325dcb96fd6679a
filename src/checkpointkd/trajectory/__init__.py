"""Trajectories: run folders, the checkpoints in them, and their addresses."""

from .addresses import Address, find, resolve
from .run_folder import RunFolder
from .trajectory import Checkpoint, Trajectory, fresh_network, open_trajectory

__all__ = ["Address", "Checkpoint", "RunFolder", "Trajectory", "find", "fresh_network", "open_trajectory", "resolve"]
