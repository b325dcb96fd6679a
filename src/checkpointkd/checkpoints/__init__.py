"""Trajectories: run directories, the checkpoints in them, and references to checkpoints."""

from .describe import describe, is_registered
from .external import GIVEN, refresh_external, register_external
from .initial import initial_network
from .metadata import metadata_dir, trust_code
from .refs import CheckpointRef, find_checkpoint, last_of, resolve, resolve_ensemble, warn_if_new_files
from .run_dir import RunDir, refuse_inside_run
from .scan import scan_folder
from .stated import load_as_stated, stated_preprocessing
from .trajectory import Checkpoint, Trajectory, build_from_run, open_trajectory

__all__ = [
    "GIVEN",
    "Checkpoint",
    "CheckpointRef",
    "RunDir",
    "Trajectory",
    "build_from_run",
    "describe",
    "find_checkpoint",
    "initial_network",
    "is_registered",
    "last_of",
    "load_as_stated",
    "metadata_dir",
    "open_trajectory",
    "refresh_external",
    "refuse_inside_run",
    "register_external",
    "resolve",
    "resolve_ensemble",
    "scan_folder",
    "stated_preprocessing",
    "trust_code",
    "warn_if_new_files",
]
