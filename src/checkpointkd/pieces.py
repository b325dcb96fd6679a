"""A folder as pieces of a chosen size, for machines that are lent for a while and take or give back little at once.

pieces/index.json       what was packed when: each file's path, size and SHA-256; each piece's
pieces/0001-0001.bin    the first piece of the first pack: contents one after the other, cut

Packed again, the folder adds what is new or has changed. The index is written last, so a pack that was stopped never
was.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import files
from .errors import UserError, existing, require

INDEX = "index.json"
LEFT_OUT = re.compile(r"(^|/)(\.lock[^/]*|[^/]*" + re.escape(files.ASIDE) + r"|report\.html|report_files(/.*)?)$")
CHUNK = 1 << 20


def pack(folder: Path, *, out: Path, megabytes: float) -> dict[str, Any]:
    """Write what is new in the folder since it was packed last, in pieces of at most so many megabytes.

    Returns the pieces' names and how many files and bytes are in them. Reports are left out: they can be made again.
    """
    require(0.01 <= megabytes <= 1e6, f"pieces have from 0.01 to 10⁶ megabytes, not {megabytes}")
    existing(folder, "folder")
    require(
        not out.resolve().is_relative_to(folder.resolve()), f"{out} lies in {folder}, which is packed; choose another"
    )
    with files.locked(folder), files.locked(out):
        packs = _packs(out) if (out / INDEX).exists() else []
        before, now = _last(packs), _contents(folder)
        new = {path: what for path, what in now.items() if before.get(path) != what}
        gone = sorted(before.keys() - now.keys())
        if not new and not gone:
            return {"pieces": [], "files": 0, "bytes": 0, "gone": 0}
        digests = {}
        for part, content in enumerate(_cut(folder, new, int(megabytes * 1e6)), 1):
            name = f"{len(packs) + 1:04d}-{part:04d}.bin"
            files.write_whole(out / name, content)
            digests[name] = hashlib.sha256(content).hexdigest()
        packs.append({"files": new, "gone": gone, "pieces": digests})
        files.write_json(out / INDEX, {"packs": packs})
    return {
        "pieces": list(digests),
        "files": len(new),
        "bytes": sum(size for size, _ in new.values()),
        "gone": len(gone),
    }


def unpack(pieces: Path, *, out: Path) -> dict[str, Any]:
    """Put the folder together again, as it was when it was packed last.

    Raises UserError for pieces that are damaged or missing, and where the folder has something that was never packed.
    """
    existing(pieces / INDEX, "index of pieces")
    packs = _packs(pieces)
    last = _last(packs)
    with files.locked(out):
        there = _contents(out)
        packed = [pack["files"] for pack in packs]
        strange = [path for path, what in there.items() if what not in [one.get(path) for one in packed]]
        require(
            not strange,
            f"{out} has what is not in the pieces ({', '.join(strange[:3])}); choose another --out, or pack it first",
        )
        for pack in packs:
            wanted = {
                path for path, what in pack["files"].items() if last.get(path) == what and there.get(path) != what
            }
            if wanted:
                _extract(pieces, pack, wanted, out)
        for path in there.keys() - last.keys():
            (out / path).unlink()
    return {"files": len(last), "bytes": sum(size for size, _ in last.values())}


def _contents(folder: Path) -> dict[str, list[Any]]:
    """Each file's size and SHA-256, by its path in the folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not path.is_symlink() and not LEFT_OUT.search(name):
            with open(path, "rb") as file:
                found[name] = [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
    return found


def _cut(folder: Path, new: dict[str, list[Any]], size: int) -> Iterator[bytes]:
    """The files' contents one after the other, in pieces of this size."""
    piece = bytearray()
    for name, (expected, digest) in sorted(new.items()):
        content = (folder / name).read_bytes()
        unchanged = len(content) == expected and hashlib.sha256(content).hexdigest() == digest
        require(unchanged, f"{folder / name} changes while it is packed; stop what writes it first")
        piece += content
        while len(piece) >= size:
            yield bytes(piece[:size])
            del piece[:size]
    if piece or not new:
        yield bytes(piece)


def _extract(pieces: Path, pack: dict[str, Any], wanted: set[str], out: Path) -> None:
    """Write the wanted files of a pack."""
    stream = bytearray()
    names = iter(sorted(pack["pieces"].items()))
    for path, (size, digest) in sorted(pack["files"].items()):
        while len(stream) < size:
            name, expected = next(names, (None, None))
            require(name is not None, f"the pieces in {pieces} are too short for {path}; copy them again")
            content = _piece(pieces / str(name), str(expected))
            stream += content
        content = bytes(stream[:size])
        del stream[:size]
        if path in wanted:
            require(hashlib.sha256(content).hexdigest() == digest, f"{path} in {pieces} is damaged; copy it again")
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            files.write_whole(out / path, content)


def _piece(path: Path, digest: str) -> bytes:
    content = existing(path, "piece").read_bytes()
    require(hashlib.sha256(content).hexdigest() == digest, f"the piece {path} is damaged; copy it again")
    return content


def _packs(pieces: Path) -> list[dict[str, Any]]:
    """What was packed when; raises UserError for an index that none of ours is, and for paths that lead elsewhere."""
    stored = files.read_json(pieces / INDEX)
    try:
        packs = [
            {
                "files": {str(path): [int(what[0]), str(what[1])] for path, what in one["files"].items()},
                "gone": [str(path) for path in one["gone"]],
                "pieces": {str(name): str(digest) for name, digest in one["pieces"].items()},
            }
            for one in stored["packs"]
        ]
    except (KeyError, TypeError, AttributeError, ValueError, IndexError):
        raise UserError(f"{pieces / INDEX} is damaged: it is no index of pieces") from None
    names = [name for pack in packs for name in (*pack["files"], *pack["pieces"])]
    for name in names:
        parts = name.split("/")
        require(
            not name.startswith("/") and "\\" not in name and all(part not in ("", ".", "..") for part in parts),
            f"{pieces / INDEX} names {name!r}, which leads out of the folder; it is not ours",
        )
    return packs


def _last(packs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """What the folder held when it was packed last."""
    held: dict[str, list[Any]] = {}
    for pack in packs:
        held |= pack["files"]
        for path in pack["gone"]:
            held.pop(path, None)
    return held
