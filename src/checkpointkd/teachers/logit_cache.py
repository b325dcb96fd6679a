"""The logit cache: teachers' logits on disk, so that each is computed once.

An entry is a folder, `logits/KEY` in the cache directory, with one teacher's logits for one set of images:

manifest.json        all that the logits follow from; KEY is its hash, so any change makes another entry
logits.safetensors   float32 logits of clean images, or
rows.bin             float16 logits of every view of every training image, with a checksum for each row; the views are
                     all crops and flips, or with `--views` a few fixed ones

All entries share one limit. Those that were unused for longest make room.
A process that still reads a removed file keeps it until the process ends.

Letters in names: M rows, N images, K classes, W words of 64 bits in a row.
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from .. import records, storage
from ..checkpoints import CheckpointRef
from ..config import LOGIT_CACHE_GB, Augmentation, Precision
from ..data import InMemoryImages, StreamingImages, Views, cache_dir
from ..errors import UserError, format_bytes
from ..losses.top_logits import from_top_logits, top_logits
from ..models import names_code
from ..records.logit_cache import FixedViewsRecord, LogitManifest, ViewsRecord
from ..seeding import hashed_words

log = logging.getLogger("checkpointkd")

DEFAULT_LIMIT = int(LOGIT_CACHE_GB * 1e9)  # bytes of all entries; --logit-cache-gb
MANIFEST, CLEAN, ROWS = "manifest.json", "logits.safetensors", "rows.bin"


class LogitFile:
    """One teacher's logits for M rows, in a file that processes share: K values in 16 bits and a checksum per row.

    With `top_k`, a row holds the largest logits, their classes, and the mean of the other logits. The other classes are
    read with this mean.

    A row that was never written, was written by half or belongs elsewhere has a wrong checksum. It counts as missing.
    `found` counts the valid rows that this object has read, and `computed` the rows that it has written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = LogitFile(Path(folder) / "rows.bin", rows=4, classes=3)
    ...     file.write(torch.tensor([2]), torch.tensor([[1.0, 2.0, 3.0]]))
    ...     logits_MK, valid_M = file.read(torch.tensor([0, 2]))
    >>> valid_M.tolist(), logits_MK[1].tolist()
    ([False, True], [1.0, 2.0, 3.0])
    """

    def __init__(self, path: Path, *, rows: int, classes: int, top_k: int | None = None) -> None:
        self.classes, self.top_k, self.words = classes, top_k, _words(classes, top_k)
        size = size_of(rows, classes, top_k)
        if path.exists() and path.stat().st_size != size:
            path.unlink()  # not a file of this format
        if not path.exists():
            _reserve(path, size)
        os.utime(path)  # the time of last use, for `_make_room`
        self.found, self.computed = 0, 0
        self._size, self._file = size, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._rows_MW = torch.from_file(str(path), shared=True, size=rows * (self.words + 1), dtype=torch.int64).view(
            rows, self.words + 1
        )

    def read(self, row_M: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of these rows, float16 (M, K), and which of the rows are valid, bool (M,)."""
        if self._is_cut():
            return torch.zeros(len(row_M), self.classes, dtype=torch.float16), torch.zeros(len(row_M), dtype=torch.bool)
        rows_MW = self._rows_MW[row_M]
        values_MW, checksum_M = rows_MW[:, :-1], rows_MW[:, -1]
        valid_M = checksum_M == _checksum(values_MW, row_M)
        self.found += int(valid_M.sum())
        return self._decoded(values_MW.contiguous().view(torch.float16)), valid_M

    def write(self, row_M: Tensor, logits_MK: Tensor) -> None:
        """Store the logits of these rows."""
        self.computed += len(row_M)
        if self._is_cut():
            return
        encoded = self._encoded(logits_MK)
        padded = torch.zeros(len(row_M), 4 * self.words, dtype=torch.float16)
        padded.view(torch.int16)[:, : encoded.shape[1]] = encoded.view(torch.int16)
        values_MW = padded.view(torch.int64)
        self._rows_MW[row_M] = torch.cat([values_MW, _checksum(values_MW, row_M)[:, None]], 1)

    def as_read(self, logits_MK: Tensor) -> Tensor:
        """Return logits as `read` returns them after `write`, float16 (M, K)."""
        return self._decoded(self._encoded(logits_MK))

    def _encoded(self, logits_MK: Tensor) -> Tensor:
        """Return the values of rows in 16 bits: all logits, or the largest, their classes and the others' mean."""
        if self.top_k is None:
            return logits_MK.to(torch.float16).contiguous()
        largest_Mk, class_Mk, rest_M1 = top_logits(logits_MK, self.top_k)
        return torch.cat([largest_Mk, class_Mk.view(torch.float16), rest_M1], 1)

    def _decoded(self, values: Tensor) -> Tensor:
        if self.top_k is None:
            return values[:, : self.classes]
        k = self.top_k
        class_Mk = values[:, k : 2 * k].contiguous().view(torch.int16)
        return from_top_logits(values[:, :k], class_Mk, values[:, 2 * k : 2 * k + 1], classes=self.classes)

    def _is_cut(self) -> bool:
        """Whether another program has shortened the file: reading the lost part would kill the process."""
        return os.fstat(self._file).st_size != self._size


def manifests_of(
    members: Sequence[CheckpointRef],
    images: InMemoryImages | StreamingImages,
    *,
    views: Views | Augmentation | None,
    precision: Precision,
    device: torch.device,
    batch_size: int,
    top_k: int | None = None,
) -> list[LogitManifest]:
    """Return, for each teacher, all that its logits for these images follow from.

    Args:
        views: The views of each image, the augmentation of their fixed views, or None for clean images.
        batch_size: The images in one forward pass. Another size sums in another order.
        top_k: How many of the largest logits are stored; None for all.
    """
    images_sha256 = images.sha256()
    per_image = 1
    if views is not None:
        per_image = len(views) if isinstance(views, Views) else views.views or 1
    return [
        LogitManifest(
            teacher=member.checkpoint.sha256,
            model=member.checkpoint.run.model,
            images=images_sha256,
            views=ViewsRecord(pad=views.pad, flip=views.flip) if isinstance(views, Views) else None,
            fixed_views=_fixed_views(images, views) if isinstance(views, Augmentation) else None,
            top_k=top_k,
            rows=len(images) * per_image,
            classes=len(member.checkpoint.run.classes),
            precision=precision,
            device=device.type,
            batch_size=batch_size,
            versions=_versions(member.checkpoint.run.model),
            network_config=member.checkpoint.run.network_config,
        )
        for member in members
    ]


def user_code_in(members: Sequence[CheckpointRef]) -> str | None:
    """Return the first network of these that is a user's own code, `package.module:callable`, or None.

    Such code may change without a trace in the key, so logits of these networks are never cached.
    """
    models = [member.checkpoint.run.model for member in members]
    return next((model for model in models if names_code(model)), None)


def clean_logits(manifest: LogitManifest, compute: Callable[[], Tensor], *, limit: int) -> Tensor:
    """Return a teacher's logits of clean images, float32 (N, K): those stored, else those computed, which are stored.

    Logits that cannot be stored cost time when they are needed again, nothing else.
    """
    key = _key(manifest)
    path = _folder() / key / CLEAN
    logits_NK = _stored(path, manifest, key)
    if logits_NK is None:
        logits_NK = compute()
        with contextlib.suppress(OSError, UserError):
            _make_room({key: logits_NK.nbytes}, limit)
            storage.save_tensors(path, {"logits_NK": logits_NK}, {"key": key})
            storage.write_json(path.with_name(MANIFEST), manifest)
    return logits_NK


def view_logits(manifests: Sequence[LogitManifest], *, limit: int) -> list[LogitFile]:
    """Open the file of each teacher's logits of every view. Its space on the disk is reserved first.

    Raises:
        UserError: If the files need more bytes than the limit.
        OSError: If the disk is full or cannot be written to.
    """
    keys = [_key(manifest) for manifest in manifests]
    sizes = [size_of(manifest.rows, manifest.classes, manifest.top_k) for manifest in manifests]
    _make_room(dict(zip(keys, sizes, strict=True)), limit)
    files = []
    for key, manifest in zip(keys, manifests, strict=True):
        folder = _folder() / key
        size = {"rows": manifest.rows, "classes": manifest.classes, "top_k": manifest.top_k}
        files.append(LogitFile(folder / ROWS, **size))
        storage.write_json(folder / MANIFEST, manifest)
    return files


def size_of(rows: int, classes: int, top_k: int | None = None) -> int:
    """Return the size of a file of logits of every view, in bytes. For all of CIFAR-100 it is 1.7 GB."""
    return rows * (_words(classes, top_k) + 1) * 8


def _fixed_views(images: InMemoryImages | StreamingImages, augmentation: Augmentation) -> FixedViewsRecord:
    streamed = isinstance(images, StreamingImages)
    needs_torchvision = augmentation.changes_pixels
    return FixedViewsRecord(
        augmentation=augmentation,
        size=images.shape[1:],
        flip=images.flip,
        pad=None if streamed else images.views.pad,
        pillow=version("pillow") if streamed or needs_torchvision else None,
        torchvision=version("torchvision") if needs_torchvision else None,
    )


def _versions(model: str) -> dict[str, str]:
    """The versions of the packages whose code computes a network's logits."""
    builder = {"timm": "timm", "hf": "transformers"}.get(model.partition(":")[0])
    return {package: version(package) for package in ("checkpointkd", "torch", builder) if package}


def _folder() -> Path:
    return cache_dir() / "logits"


def _key(manifest: LogitManifest) -> str:
    return storage.cache_key(records.plain(manifest))


def _stored(path: Path, manifest: LogitManifest, key: str) -> Tensor | None:
    """The stored logits of clean images, or None if they are absent, damaged or another entry's."""
    try:
        tensors, metadata = storage.load_tensors(path)
    except UserError:
        return None
    logits_NK = tensors.get("logits_NK")
    if logits_NK is None or logits_NK.shape != (manifest.rows, manifest.classes) or metadata.get("key") != key:
        return None
    with contextlib.suppress(OSError):  # a cache that cannot be written to can be read
        os.utime(path)
    return logits_NK


def _make_room(wanted: Mapping[str, int], limit: int) -> None:
    """Remove the entries that were unused for longest, until those that are wanted fit into the limit.

    Args:
        wanted: The size in bytes of each wanted entry, by its key.
        limit: What all entries may take up, in bytes.

    Raises:
        UserError: If the wanted entries alone exceed the limit. Nothing is removed then.
    """
    total = sum(wanted.values())
    if total > limit:
        raise UserError(f"{format_bytes(total)} are needed, but --logit-cache-gb allows {format_bytes(limit)}")
    removable = [entry for entry in _entries() if entry[2].name not in wanted]
    total += sum(size for _, size, _ in removable)
    for _, size, folder in sorted(removable):
        if total <= limit:
            break
        with contextlib.suppress(OSError):  # another process removes the same entry, or has begun to write it
            for file in folder.iterdir():
                file.unlink(missing_ok=True)
            folder.rmdir()
        total -= size
        log.info(
            "Removed %s (%s), the least recently used logits, to stay within --logit-cache-gb",
            folder,
            format_bytes(size),
        )


def _entries() -> Iterator[tuple[float, int, Path]]:
    """Yield the time of last use, the size in bytes and the folder of each entry."""
    for folder in _folder().glob("*"):
        storage.remove_leftovers(folder)
        with contextlib.suppress(OSError):  # another process has removed it meanwhile
            status = {file.name: file.stat() for file in folder.iterdir()}
            size = sum(file.st_size for name, file in status.items() if name != MANIFEST)
            yield max((file.st_mtime for file in status.values()), default=0.0), size, folder


def _words(classes: int, top_k: int | None = None) -> int:
    """How many words of 64 bits hold one row's values of 16 bits."""
    return -(-(classes if top_k is None else 2 * top_k + 1) // 4)


def _checksum(values_MW: Tensor, row_M: Tensor) -> Tensor:
    """Return a checksum of each row's words and number, never 0, which a row that was never written has.

    Each word's factor is odd, so a change of a single word always changes the checksum.
    """
    factor_W = hashed_words(torch.arange(values_MW.shape[1]), "logit words") | 1
    sum_M = (values_MW * factor_W).sum(1) + hashed_words(row_M, "logit row")
    return torch.where(sum_M == 0, 1, sum_M)


def _reserve(path: Path, size: int) -> None:
    """Create a file of zeros and reserve its space: writing to a mapped file on a full disk kills the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = storage.path_aside(path)
    try:
        with storage.UnfinishedFile(aside, path) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                for start in range(0, size, 1 << 24):
                    file.write(bytes(min(1 << 24, size - start)))
        with contextlib.suppress(FileExistsError):  # another process created the file meanwhile: both use it
            os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)
