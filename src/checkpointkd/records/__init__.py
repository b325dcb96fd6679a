"""Typed records of the JSON files that the package writes, each described once, here.

A record is read with `read`, which checks every field, and written with `storage.write_json(path, plain(record))`.
No torch here: the command line imports this package.
"""

from .base import Record, convert, decode, plain, provenance, read, read_bytes, read_lines
from .runs import FORMAT, METADATA, identity_of, read_run

__all__ = ["FORMAT", "METADATA", "Record", "convert", "decode", "identity_of", "plain", "provenance", "read"]
__all__ += ["read_bytes", "read_lines", "read_run"]
