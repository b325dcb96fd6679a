"""No file runs code, leads elsewhere or unpacks to more than its size, and a damaged file is never used."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import random
import re
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import safetensors.torch
import torch
from hypothesis import strategies as st

import checkpointkd as ckd
from checkpointkd.checkpoints import build_from_run, register_external, scan_folder
from checkpointkd.checkpoints.weights import weights
from checkpointkd.cli import main
from checkpointkd.data import Data
from checkpointkd.errors import UserError
from checkpointkd.models import Network

from .network import build
from .writers import NET, Written, copied


class Evil:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, call: Callable, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def _gadgets(canary: Path) -> dict[str, Evil]:
    touch = f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": Evil(os.system, f"touch {canary}"),
        "eval": Evil(eval, touch),
        "exec": Evil(exec, touch),
        "getattr chain": Evil(getattr, Evil(__import__, "os"), "system"),
        "torch.load of another file": Evil(torch.load, str(canary)),
        "partial": Evil(collections.defaultdict, Evil(eval, touch)),
        "pathlib": Evil(Path.touch, canary),
        "numpy.load": Evil(__import__("numpy").load, str(canary)),
    }


@pytest.mark.parametrize("gadget", [*_gadgets(Path("x"))])
@pytest.mark.parametrize("container", ["zip", "legacy", "bare pickle", "inside args"])
def test_a_call_in_a_pickle_is_read_as_data_and_named(gadget: str, container: str, tmp_path: Path, capsys):
    """The weights beside it are read, and nothing is called."""
    canary, path = tmp_path / "canary", tmp_path / "external" / "epoch_1.pt"
    path.parent.mkdir()
    evil = _gadgets(canary)[gadget]
    state = dict(build(10, 1).state_dict())
    if container == "bare pickle":
        path.write_bytes(pickle.dumps({"state_dict": evil}))
    elif container == "inside args":
        torch.save({"state_dict": state, "epoch": 1, "args": {"lr": [0.1, evil]}}, path)
    else:
        torch.save({**state, "evil": evil}, path, _use_new_zipfile_serialization=container == "zip")
    called = f"{evil.call.__module__}.{evil.call.__qualname__}"
    if container == "bare pickle":
        with pytest.raises(UserError, match=r"epoch_1\.pt: holds no weights"):
            scan_folder(path.parent)
    else:
        tensors = weights(path, build(10, 1), key=None, model=NET).tensors
        assert all(torch.equal(tensors[name], state[name]) for name in state)
        assert main(["inspect", str(path.parent), "--model", NET, "--data", "digits"]) == 0
        if gadget not in ("partial", "pathlib"):  # a defaultdict and a path, as far as the reader sees
            assert called in " ".join(capsys.readouterr().out.split())
    assert not canary.exists()


def test_what_trainers_store_beside_weights_is_read(tmp_path: Path):
    import argparse

    import numpy as np

    beside = {
        "args": argparse.Namespace(lr=0.1, out=Path("/somewhere"), sizes=(1, 2)),
        "best": np.float32(0.7),
        "steps": np.int64(4),
        "when": collections.OrderedDict(a=1),
    }
    torch.save({"state_dict": build(10, 1).state_dict(), "epoch": np.int64(2), **beside}, tmp_path / "best.pt")
    assert list(scan_folder(tmp_path).checkpoints) == [2]


class Made:
    """An object whose pickle is a call and then a state, which restricted unpicklers allow for some types."""

    def __init__(self, call: Callable, *arguments: Any, state: Any = None) -> None:
        self.call, self.arguments, self.state = call, arguments, state

    def __reduce__(self) -> Any:
        return (self.call, self.arguments) if self.state is None else (self.call, self.arguments, self.state)


def _a_pointer_of_its_own(path: Path) -> None:
    """Write a NumPy type whose bytes are taken for an object: NumPy itself would crash on it."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    fields = {"a": (Made(np.dtype, "O"), 0)}
    inner = Made(np.dtype, ">f8", state=(3, ">", None, ("a",), fields, -1, -1, 0))
    outer = Made(np.dtype, ("V8", inner))
    torch.save({**build(10, 1).state_dict(), "x": [Made(set, Made(scalar, outer, b"AAAAAAAA"))]}, path)


def _memory_from_nothing(path: Path) -> None:
    torch.save({**build(10, 1).state_dict(), "x": Made(bytearray, 3_000_000_000)}, path)


def _dicts_of_dicts(path: Path) -> None:
    value: Any = build(10, 1).state_dict()
    for _ in range(9):
        value = {f"{number}": value for number in range(12)}
    torch.save(value, path)


def _two_archives(path: Path) -> None:
    """Write two archives, of which PyTorch would read the first and a zip reader the second."""
    first, second = io.BytesIO(), io.BytesIO()
    torch.save(build(10, 1).state_dict(), first)
    torch.save(build(10, 1).state_dict(), second)
    path.write_bytes(first.getvalue() + second.getvalue())


def _too_large_for_the_network(path: Path) -> None:
    state = build(10, 1).double().state_dict()
    state["head.weight"] *= 1e300
    torch.save(state, path)


def _on_no_device(path: Path) -> None:
    torch.save(build(10, 1).to("meta").state_dict(), path)


def _metadata(path: Path, entry: str) -> None:
    safetensors.torch.save_file(build(10, 1).state_dict(), path, {"checkpointkd": entry})


def _deflated(path: Path) -> None:
    plain = io.BytesIO()
    torch.save({"method_weight": torch.zeros(3_000_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in source.infolist():
            bomb.writestr(entry.filename, source.read(entry))
    assert path.stat().st_size < 100_000


def _two_of_one_name(path: Path) -> None:
    torch.save(build(10, 1).state_dict(), path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], b"another pickle")


def _archive_in_an_archive(path: Path) -> None:
    inner = io.BytesIO()
    torch.save(build(10, 1).state_dict(), inner)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", inner.getvalue())
        archive.writestr("archive/version", b"3")


def _torchscript(path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(build(10, 1).eval(), torch.zeros(1, 1, 8, 8)), path)


def _oversized_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")


def _lying_header(path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))


def _outside_its_storage(path: Path) -> None:
    state = build(10, 1).state_dict()
    state["head.weight"] = torch.zeros(1).expand(1 << 30, 1 << 10)
    torch.save(state, path)


def _tar_out_of_the_folder(path: Path) -> None:
    import tarfile

    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("../../escaped")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"evil"))


BOMBS = {
    "deflated.pt": _deflated,
    "twice.pt": _two_of_one_name,
    "nested.pt": _archive_in_an_archive,
    "script.pt": _torchscript,
    "header.safetensors": _oversized_header,
    "lying.safetensors": _lying_header,
    "outside.pt": _outside_its_storage,
    "escape.tar": _tar_out_of_the_folder,
    "two.pt": _two_archives,
    "double.pt": _too_large_for_the_network,
    "meta.pt": _on_no_device,
    "deep.safetensors": lambda path: _metadata(path, "[" * 100_000),
    "list.safetensors": lambda path: _metadata(path, "[5]"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_and_forged_files_are_refused(name: str, tmp_path: Path):
    import resource

    folder = tmp_path / "external"
    folder.mkdir()
    BOMBS[name](folder / name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        UserError,
        match=rf"{name.replace('.', '[.]')} (is (refused|damaged|a TorchScript|a zip|no file)|does not fit|holds)",
    ) as caught:
        ckd.inspect(folder, model=NET, data="digits")
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"
    assert [path.name for path in tmp_path.rglob("*")] == ["external", name]


@pytest.mark.parametrize("write", [_a_pointer_of_its_own, _memory_from_nothing])
def test_objects_beside_the_weights_are_not_made(write: Callable[[Path], None], tmp_path: Path):
    """NumPy would crash on the first, and the second would take 3 GB."""
    import resource

    write(tmp_path / "epoch_1.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert list(scan_folder(tmp_path).checkpoints) == [1]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kilobytes"


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "a/model_2.safetensors", "..", "x.exe", ""])
def test_a_shard_index_that_leads_elsewhere_is_refused(shard: str, tmp_path: Path):
    safetensors.torch.save_file(build(10, 1).state_dict(), tmp_path / "secret.safetensors")
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    index = {"weight_map": dict.fromkeys(build(10, 1).state_dict(), shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"names '.*', which is not a file of weights in its own folder"):
        scan_folder(folder)


def test_links_out_of_the_folder_are_refused_and_links_within_are_followed(all_written, tmp_path: Path, digits: Data):
    path, model, _ = copied(all_written["safetensors"], tmp_path)
    (Path(path) / "model_4.safetensors").symlink_to("model_1.safetensors")
    assert len(register_external(path, model=model, data=digits)) == 4
    (Path(path) / "model_4.safetensors").unlink()
    (tmp_path / "elsewhere.safetensors").write_bytes((Path(path) / "model_1.safetensors").read_bytes())
    (Path(path) / "model_4.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(UserError, match=r"model_4\.safetensors is a link that leads out of"):
        scan_folder(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_from_files_cannot_control_the_terminal_or_the_page(tmp_path: Path, capfd):
    evil = "\x1b[2J\x1b]0;owned\x07[red]<script>alert(1)<\\script>\n"
    folder = tmp_path / f"external {evil}"
    folder.mkdir()
    for epoch in (1, 2):
        torch.save(build(10, 1).state_dict(), folder / f"{evil}epoch{epoch}.pt")
    state = dict(build(10, 1).state_dict()) | {f"layer{evil}": torch.zeros(1)}
    assert main(["inspect", str(folder)]) == 0
    assert main(["score", str(folder), "--model", NET, "--data", "digits", "--decoder-steps", "1"]) == 0
    assert main(["select", str(folder), "--rule", "midpoint"]) == 0
    assert main(["inspect", str(folder)]) == 0
    assert main(["report", str(tmp_path)]) == 0
    torch.save(state, folder / f"{evil}epoch3.pt")
    assert main(["inspect", str(folder), "--model", NET, "--data", "digits"]) == 2
    out, error = capfd.readouterr()
    assert "\\x1b[2J" in out + error
    for forbidden in ("\x1b", "\x07"):
        assert forbidden not in out + error
    assert "<script>alert" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_dicts_of_the_same_dicts_are_refused(tmp_path: Path):
    """There are 12⁹ paths to the weights."""
    _dicts_of_dicts(tmp_path / "epoch_1.pt")
    with pytest.raises(UserError, match=r"epoch_1\.pt is refused: it holds more tensors, or longer names"):
        scan_folder(tmp_path)


@pytest.mark.parametrize("count", [150_000, 3_000_000])
def test_a_list_of_too_many_tensors_is_refused(count: int, tmp_path: Path):
    """The list repeats one tensor."""
    buffer = io.BytesIO()
    torch.save([torch.ones(1)] * 3, buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(tmp_path / "epoch_1.pt", "w") as forged:
        for entry in archive.infolist():
            content = archive.read(entry)
            if entry.filename.endswith("data.pkl"):
                again = re.search(rb"(h.)e\.$", content)
                assert again is not None
                content = content[: again.start()] + again[1] * count + b"e."
            forged.writestr(entry.filename, content)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"is refused: it holds more (tensors|values)"):
        scan_folder(tmp_path / "epoch_1.pt")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("entry", ['{"epoch": 5}', '{"epoch": "\u00b2"}', '{"epoch": "' + "9" * 5000 + '"}'])
def test_the_epoch_in_a_header_is_a_number_or_ignored(entry: str, tmp_path: Path):
    _metadata(tmp_path / "epoch_3.safetensors", entry)
    assert list(scan_folder(tmp_path).checkpoints) == [3]


def test_what_is_not_a_regular_file_is_left_out(tmp_path: Path):
    torch.save(build(10, 1).state_dict(), tmp_path / "epoch_1.pt")
    (tmp_path / "epoch_2.pt").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "epoch_3.pt")
    folder = scan_folder(tmp_path)
    assert list(folder.checkpoints) == [1]
    assert all("not a regular file" in reason for reason in folder.left_out)
    assert list(scan_folder(tmp_path / "epoch_[13].pt").checkpoints) == [1], "a pipe would wait for a writer"
    (tmp_path / "epoch_4.pt").symlink_to("epoch_4.pt")
    with pytest.raises(UserError, match=r"epoch_4\.pt is a link that leads out of"):
        scan_folder(tmp_path)


@pytest.mark.parametrize("where", ["model.safetensors", "shard"])
def test_links_out_of_a_hugging_face_folder_are_refused(where: str, tmp_path: Path):
    checkpoint = tmp_path / "external" / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    safetensors.torch.save_file(build(10, 1).state_dict(), tmp_path / "secret.safetensors")
    if where == "shard":
        index = {"weight_map": dict.fromkeys(build(10, 1).state_dict(), "model_1.safetensors")}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
        where = "model_1.safetensors"
    (checkpoint / where).symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(UserError, match="is a link that leads out of"):
        scan_folder(checkpoint.parent)


def _record(path: str) -> tuple[Path, dict]:
    file = Path(path) / "checkpointkd" / "run.json"
    return file, json.loads(file.read_text())


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "../../../../etc/passwd"])
def test_a_downloaded_record_leads_nowhere_else(file: str, all_written: dict[str, Written], tmp_path: Path):
    path, model, _ = copied(all_written["safetensors"], tmp_path)
    ckd.inspect(path, model=model, data="digits")
    shutil.copy(Path(path) / "model_1.safetensors", tmp_path / "secret.safetensors")
    record, run = _record(path)
    run["checkpoints"]["2"]["file"] = file
    record.write_text(json.dumps(run))
    with pytest.raises(UserError, match="which is not in"):
        ckd.evaluate(f"{path}@2")
    run["checkpoints"]["2"]["file"] = "model_2.safetensors"
    record.write_text(json.dumps({**run, "folder": "/"}))
    assert ckd.open_trajectory(path)[2].path.resolve() == (Path(path) / "model_2.safetensors").resolve()


def test_a_downloaded_record_runs_no_code(all_written: dict[str, Written], tmp_path: Path, monkeypatch):
    path, model, _ = copied(all_written["safetensors"], tmp_path)
    ckd.inspect(path, model=model, data="digits")
    monkeypatch.setenv("CHECKPOINTKD_HOME", str(tmp_path / "home of another user"))
    for command in (lambda: ckd.evaluate(f"{path}@2"), lambda: ckd.score(path), lambda: ckd.inspect(path)):
        with pytest.raises(
            UserError,
            match=r"names code, 'tests\.checkpoints\.network:build', which you have not named on this machine",
        ):
            command()
    ckd.inspect(path, model=model, data="digits")
    assert len(ckd.evaluate(f"{path}@2")["members"]) == 1
    record, run = _record(path)
    record.write_text(json.dumps({**run, "model": "this:evil"}))
    with pytest.raises(UserError, match="names code, 'this:evil'"):
        ckd.evaluate(f"{path}@2")


SPOILED = [
    {"left_out": 5},
    {"left_out": [5]},
    {"unit": None},
    {"pattern": "../x"},
    {"mean": [10**400]},
    {"mean": ["a"]},
    {"data": []},
    {"data": None},
    {"checkpoints": {}},
    {"checkpoints": []},
    {"checkpoints": {"x": {}}},
    {"checkpoints": {"9" * 5000: {}}},
    {"checkpoints": {"1": {"file": "x" * 5000}}},
    {"checkpoints": {"1": {"file": 5}}},
    {"kind": 5},
    {"state_dict_key": 5},
    {"files": "../x"},
    {"passed_over": None},
]


def test_a_damaged_record_is_named(all_written: dict[str, Written], tmp_path: Path):
    path, model, _ = copied(all_written["safetensors"], tmp_path)
    ckd.inspect(path, model=model, data="digits")
    record, run = _record(path)
    changes = [
        *SPOILED,
        *(
            {name: None}
            for name in run
            if name not in ("format", "kind", "state_dict_key", "files", "pattern", "network_config")
        ),
    ]
    for entry in ({"file": "a\0b"}, {"accuracy": "x"}, {"accuracy": 7.0}, {"fingerprint": None}, {"sha256": None}):
        changes.append({"checkpoints": {"1": run["checkpoints"]["1"] | entry}})
    for change in changes:
        record.write_text(json.dumps({**run, **change}))
        for command in (
            lambda: ckd.inspect(path),
            lambda: ckd.evaluate(f"{path}@1"),
            lambda: ckd.select(path, rule="midpoint"),
        ):
            with pytest.raises(UserError) as caught:
                command()
            assert "run.json" in str(caught.value), (change, caught.value)
            assert "\n" not in str(caught.value)
    record.write_text(json.dumps(run))
    for epoch in (1, 2, 3):
        (Path(path) / f"model_{epoch}.safetensors").unlink()
    for command in (
        lambda: ckd.inspect(path),
        lambda: ckd.evaluate(f"{path}@last"),
        lambda: ckd.select(path, rule="midpoint"),
    ):
        with pytest.raises(UserError, match="None of the checkpoints that were inspected"):
            command()


PREPROCESSORS = [
    "[1]",
    "{",
    '{"image_mean": "0.5", "image_std": 0.5}',
    '{"image_mean": ["a"], "image_std": ["b"]}',
    '{"image_mean": [NaN], "image_std": [1e999]}',
    '{"image_mean": [0.5], "image_std": [0]}',
]


@pytest.mark.parametrize("content", PREPROCESSORS)
def test_a_damaged_preprocessor_is_named_or_ignored(
    content: str, all_written: dict[str, Written], tmp_path: Path, digits: Data
):
    path, model, _ = copied(all_written["Hugging Face"], tmp_path)
    for checkpoint in Path(path).glob("checkpoint-*"):
        (checkpoint / "preprocessor_config.json").write_text(content)
    try:
        assert register_external(path, model=model, data=digits).run.normalized_as == "measured on the training images"
    except UserError as error:
        assert "preprocessor_config.json is damaged" in str(error)  # noqa: PT017


# --- damage ---------------------------------------------------------------------------------------------------------

FILES = {  # a format and the file of epoch 2 in it
    "timm": "checkpoint-1.pth.tar",
    "Lightning": "epoch=1-step=6.ckpt",
    "Hugging Face": "checkpoint-6/model.safetensors",
    "Hugging Face, shards": "checkpoint-6/model-00001-of-00003.safetensors",
    "Hugging Face, bin": "checkpoint-6/pytorch_model.bin",
    "torchvision reference": "model_1.pth",
    "CheckpointKD authors": "wrn1_teacher2_ckpt.pth.tar",
    "state dict, compiled": "net-epoch02.pt",
    "state dict": "net_1.pth",
    "dict of weights, old": "ckpt.2.pt",
    "safetensors": "model_2.safetensors",
    "safetensors, checkpointkd's writer": "epoch-0002.safetensors",
}
WITHOUT_CHECKSUMS = {"Hugging Face", "Hugging Face, shards", "dict of weights, old", "safetensors"}


def _bytes_damaged(content: bytes, how: str, draw: random.Random) -> bytes:
    if how == "empty":
        return b""
    if how == "truncated":
        return content[: draw.randrange(len(content))]
    if how == "wrong type":
        return draw.choice([b"hello", b"\x89PNG\r\n", b"{}", bytes(1000), b"PK\x03\x04", draw.randbytes(500)])
    damaged = bytearray(content)
    at = draw.randrange(len(content))
    if how == "bit flipped":
        damaged[at] ^= 1 << draw.randrange(8)
    elif how == "zeroed":  # a block that never reached the disk
        damaged[at : at + 512] = bytes(len(damaged[at : at + 512]))
    return bytes(damaged)


def _weights_damaged(path: Path, how: str, draw: random.Random) -> None:
    """Change the content of a file, and write it in the same format."""
    safe = path.suffix == ".safetensors"
    content = safetensors.torch.load_file(path) if safe else torch.load(path, weights_only=False)
    inner = content
    for key in ("state_dict", "model", "model_state", "net"):
        if isinstance(inner.get(key), dict):
            inner = inner[key]
    names = [n for n, t in inner.items() if isinstance(t, torch.Tensor) and t.is_floating_point() and "crit" not in n]
    name = draw.choice(names)
    tensor = inner[name].clone()
    if how in ("NaN", "Inf"):
        tensor.view(-1)[draw.randrange(tensor.numel())] = float(how)
        inner[name] = tensor
    elif how == "wrong key":
        inner[f"{name}_"] = inner.pop(name)
    elif how == "key missing":
        del inner[name]
    elif how == "wrong shape":
        inner[name] = torch.cat([tensor, tensor])
    elif how == "wrong classes":
        for head in [n for n in names if n.endswith(("head.weight", "head.bias", "classifier.1.weight"))] or [name]:
            inner[head] = inner[head][:3].clone()
    if safe:
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not path.name.startswith("ckpt."))


IN_BYTES = ["empty", "truncated", "wrong type", "bit flipped", "bit flipped", "zeroed"]
IN_WEIGHTS = ["NaN", "Inf", "wrong key", "key missing", "wrong shape", "wrong classes"]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_or_its_weights_are_exact(
    name: str, all_written: dict[str, Written], tmp_path: Path, digits: Data
):
    """In a registered folder, and in one that is new. The latter cannot show a flipped bit in the weights of formats
    without checksums."""
    path, model, _ = copied(all_written[name], tmp_path)
    clean = register_external(path, model=model, data=digits)
    right = clean[2].network().state_dict()
    file = (Path(path) if Path(path).is_dir() else Path(path).parent) / FILES[name]
    checkpoint = clean[2].path
    content = file.read_bytes()
    damages: collections.Counter[str] = collections.Counter()

    def registered() -> Network:
        return ckd.open_trajectory(path)[2].network()

    def new() -> Network:
        network = build_from_run(clean.run)
        scan_folder(checkpoint)
        tensors = weights(checkpoint, network.body, key=None, model=model).tensors
        network.body.load_state_dict(tensors)
        return network

    @hypothesis.settings(max_examples=50, deadline=None, database=None, derandomize=True)
    @hypothesis.given(st.sampled_from(IN_BYTES + IN_WEIGHTS), st.integers(0, 10**6))
    def damaged(how: str, seed: int) -> None:
        file.write_bytes(content)
        draw = random.Random(seed)
        if how in IN_WEIGHTS:
            _weights_damaged(file, how, draw)
        else:
            file.write_bytes(_bytes_damaged(content, how, draw))
        damages[how] += 1
        for load in (registered, new):
            try:
                state = load().state_dict()
            except UserError as error:
                message = str(error)
                assert file.name in message or checkpoint.name in message, message
                assert "\n" not in message
                continue
            if load is new and how in ("bit flipped", "zeroed") and name in WITHOUT_CHECKSUMS:
                continue
            for key, tensor in right.items():
                assert torch.equal(state[key], tensor), (how, seed, key)

    damaged()
    assert damages.total() >= 50
    assert len(damages) >= 8, "kinds of damage"


def test_a_copy_of_a_registered_folder_is_registered(all_written: dict[str, Written], tmp_path: Path):
    path, model, _ = copied(all_written["timm"], tmp_path)
    ckd.inspect(path, model=model, data="digits")
    shutil.copytree(path, tmp_path / "copy")
    assert ckd.evaluate(f"{tmp_path / 'copy'}@2")["members"][0]["epoch"] == 2
