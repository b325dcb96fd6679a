"""Networks that leave: loaded elsewhere with one line, in the Hub's layout, as ONNX; and what else may lie there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import torch

import checkpointkd as ckd
from checkpointkd import storage
from checkpointkd.data import DataConfig, config_of, load_data
from checkpointkd.errors import UserError
from checkpointkd.metrics import predict
from checkpointkd.models import build_network

from .data.image_files import folder_of_digits


@pytest.fixture
def student(teacher_run: Path, tmp_path: Path) -> ckd.Trajectory:
    return ckd.distill(
        "wrn_10_1",
        teachers=[f"{teacher_run}@2", f"{teacher_run}@4"],
        method="at",
        epochs=1,
        batch_size=25,
        out=tmp_path / "student",
    )


def _images() -> torch.Tensor:
    return load_data(DataConfig(data="digits", train_images=60)).val.subset(torch.arange(40)).to_float()


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".lock"}


def test_a_student_is_a_network_of_its_own_with_its_teachers_named(student: ckd.Trajectory, teacher_run: Path):
    config = json.loads((student.path / "config.json").read_text())
    assert (student.path / "student.safetensors").exists()
    assert config["sha256"] == student.last.sha256
    assert [(one["epoch"], one["sha256"]) for one in config["teachers"]] == [
        (epoch, ckd.open_trajectory(teacher_run)[epoch].sha256) for epoch in (2, 4)
    ]
    assert all(0.1 < one["accuracy"] < 1 for one in config["teachers"])
    assert config["method"] == "at"
    assert config["accuracy"]["test"] == student.test_accuracy


def test_a_finished_student_gets_what_a_killed_process_left_out(student: ckd.Trajectory, teacher_run: Path):
    for name in ("config.json", "student.safetensors"):
        (student.path / name).unlink()
    ckd.distill(
        "wrn_10_1",
        teachers=[f"{teacher_run}@2", f"{teacher_run}@4"],
        method="at",
        epochs=1,
        batch_size=25,
        out=student.path,
    )
    assert (student.path / "student.safetensors").exists()
    assert (student.path / "config.json").exists()


def test_one_line_loads_it_wherever_it_lies(student: ckd.Trajectory, tmp_path: Path):
    """Two files are enough, in another folder, in a fresh process that is told nothing else."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("student.safetensors", "config.json"):
        (elsewhere / name).write_bytes((student.path / name).read_bytes())
    images = _images()
    np.save(tmp_path / "images.npy", images.numpy())
    code = (
        "import sys, numpy, torch, checkpointkd\n"
        "network = checkpointkd.load(sys.argv[1])\n"
        "with torch.no_grad(): logits = network(torch.from_numpy(numpy.load(sys.argv[2])))\n"
        "numpy.save(sys.argv[3], logits.numpy()); print(network.classes)\n"
    )
    paths = [str(elsewhere), str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(list(student.run.classes))
    with torch.no_grad():
        expected = student.last.network()(images)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "logits.npy")), expected, rtol=1e-5, atol=1e-5)


def test_load_takes_run_directories_and_checkpoint_references(teacher_run: Path):
    for source, epoch in (
        (teacher_run, 4),
        (str(teacher_run), 4),
        (f"{teacher_run}@2", 2),
        (f"{teacher_run}@last", 4),
        (f"{teacher_run}@midpoint", 2),
    ):
        network = ckd.load(source)
        with torch.no_grad():
            expected = ckd.open_trajectory(teacher_run)[epoch].network()(_images())
            assert torch.equal(network(_images()), expected)
        assert network.classes == [str(digit) for digit in range(10)]


def test_load_takes_references_to_registered_external_checkpoints(tmp_path: Path):
    for epoch in (1, 2):
        network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.4], seed=epoch)
        torch.save(network.body.state_dict(), tmp_path / f"epoch_{epoch}.pt")
    (tmp_path / "config.json").write_text('{"architectures": ["ResNet"]}')  # another library's
    with pytest.raises(UserError, match="checkpointkd"):
        ckd.load(f"{tmp_path}@last")
    ckd.inspect(tmp_path, model="wrn_10_1", data="digits", mean=[0.3], std=[0.4])
    for source, epoch in ((tmp_path, 2), (f"{tmp_path}@last", 2), (f"{tmp_path}@1", 1)):
        expected = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.4], seed=epoch).eval()
        with torch.no_grad():
            torch.testing.assert_close(ckd.load(source)(_images()), expected(_images()))


def test_only_hf_names_are_looked_for_on_the_hub(student: ckd.Trajectory, tmp_path: Path, monkeypatch):
    requests: list[str] = []

    def snapshot_download(repository: str, **_: object) -> str:
        requests.append(repository)
        if repository != "me/student":
            raise OSError("404 Client Error\nand more")
        return str(tmp_path / "export")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    ckd.export(str(student.path), out=tmp_path / "export")
    with pytest.raises(UserError, match="There is no run directory at me/student"):
        ckd.load("me/student")
    assert requests == []
    with torch.no_grad():
        assert torch.equal(ckd.load("hf:me/student")(_images()), student.last.network()(_images()))
    with pytest.raises(
        UserError, match=r"Could not download .me/nothing. from the Hugging Face Hub: 404 Client Error$"
    ):
        ckd.load("hf:me/nothing")
    assert requests == ["me/student", "me/nothing"]


def test_an_export_has_the_hubs_layout_and_onnx_says_the_same(student: ckd.Trajectory, tmp_path: Path):
    out = tmp_path / "export"
    written = ckd.export(str(student.path), out=out, onnx=True)
    assert (
        _files(out)
        == {"config.json", "model.safetensors", "state_dict.safetensors", "README.md", "model.onnx"}
        == set(written["files"])
    )
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    images = _images()
    expected = predict(ckd.load(out), load_data(DataConfig(data="digits", train_images=60)).val)
    for count in (1, 7, 40):
        (got,) = session.run(None, {"images": images[:count].numpy()})
        assert np.abs(got - expected[:count].numpy()).max() < 1e-4 * max(1, expected.abs().max().item())
    assert "library_name: checkpointkd" in (out / "README.md").read_text()
    ckd.export(str(student.path), out=out)  # again, over itself
    assert torch.equal(ckd.load(out)(images), student.last.network()(images))


@pytest.mark.slow
def test_real_cifar100_through_onnx(cifar100: Path, tmp_path: Path):
    run = ckd.train(
        "resnet_8", data=f"cifar100:{cifar100}", train_images=200, epochs=1, batch_size=50, out=tmp_path / "r"
    )
    ckd.export(str(run.path), out=tmp_path / "e", onnx=True)
    session = onnxruntime.InferenceSession(tmp_path / "e" / "model.onnx", providers=["CPUExecutionProvider"])
    images = load_data(DataConfig(data=f"cifar100:{cifar100}", train_images=200)).val.subset(torch.arange(64))
    (got,) = session.run(None, {"images": images.to_float().numpy()})
    assert np.abs(got - predict(ckd.load(tmp_path / "e"), images).numpy()).max() < 1e-4


def test_an_export_writes_over_nothing_else(student: ckd.Trajectory, teacher_run: Path, tmp_path: Path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"already holds other files \(thesis.tex\)"):
        ckd.export(str(student.path), out=tmp_path / "there")
    ckd.export(str(student.path), out=tmp_path / "e")
    with pytest.raises(UserError, match="already holds other files"):
        ckd.export(f"{teacher_run}@2", out=tmp_path / "e")
    with pytest.raises(UserError, match="already holds other files"):
        ckd.export(f"{teacher_run}@2", out=student.path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"is a file\. Choose another --out"):
        ckd.export(str(student.path), out=tmp_path / "file")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("mine")
    with pytest.raises(UserError, match="already holds other files"):
        ckd.export(str(student.path), out=tmp_path / "notes")


def test_an_export_leaves_its_lock_file(student: ckd.Trajectory, tmp_path: Path):
    """A process that has opened the file holds the lock of the same file that later processes open."""
    ckd.export(str(student.path), out=tmp_path / "e")
    inode = (tmp_path / "e" / ".lock").stat().st_ino
    ckd.export(str(student.path), out=tmp_path / "e")
    assert (tmp_path / "e" / ".lock").stat().st_ino == inode
    with storage.locked(tmp_path / "e"), pytest.raises(UserError, match="is in use by process"):
        ckd.export(str(student.path), out=tmp_path / "e")


def test_a_damaged_copy_takes_nothing_with_it_and_is_made_anew(student: ckd.Trajectory, teacher_run: Path):
    (student.path / "student.safetensors").write_bytes(b"damage")
    student.last.network()
    ckd.distill(
        "wrn_10_1",
        teachers=[f"{teacher_run}@2", f"{teacher_run}@4"],
        method="at",
        epochs=1,
        batch_size=25,
        out=student.path,
    )
    assert (student.path / "student.safetensors").read_bytes() == student.last.path.read_bytes()


def test_the_student_loads_in_plain_pytorch(student: ckd.Trajectory, tmp_path: Path):
    """The code of the model card, without our loader: the original network, and images that torchvision normalizes."""
    import re

    from safetensors.torch import load_file
    from torchvision import transforms

    out = tmp_path / "out"
    ckd.export(str(student.path), out=out)
    network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.0], std=[1.0], seed=9).body.eval()
    network.load_state_dict(load_file(out / "state_dict.safetensors"))
    code = re.findall(r"^transform = (.*)$", (out / "README.md").read_text(), re.MULTILINE)
    normalize = eval(code[0], {"transforms": transforms}).transforms[-1]
    images = _images()
    with torch.no_grad():
        torch.testing.assert_close(network(normalize(images)), ckd.load(out)(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("last", ["README.md", "config.json"])
def test_a_killed_export_can_be_given_again(student: ckd.Trajectory, tmp_path: Path, last: str):
    """A process that dies when it is about to put a file in its place."""
    out = tmp_path / "e"
    code = (
        "import os, sys, checkpointkd as ckd\n"
        "replace = os.replace\n"
        "def dying(source, target):\n"
        "    if str(target).endswith(sys.argv[3]): os._exit(9)\n"
        "    replace(source, target)\n"
        "os.replace = dying\n"
        "ckd.export(sys.argv[1], out=sys.argv[2])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(student.path), str(out), last], check=False)
    assert done.returncode == 9
    assert not (out / "config.json").exists()
    ckd.export(str(student.path), out=out)
    assert _files(out) == {"config.json", "model.safetensors", "state_dict.safetensors", "README.md"}
    ckd.load(out)


def test_a_run_that_names_code_is_not_obeyed_either(teacher_run: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemError('ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run = json.loads((teacher_run / "run.json").read_text())
    (teacher_run / "run.json").write_text(json.dumps({**run, "model": "evil:net"}))
    with pytest.raises(UserError, match=r"names code, 'evil:net'\. If you trust this code"):
        ckd.load(teacher_run)


@pytest.mark.parametrize("path", ["nowhere", "x" * 5000, "a\0b"])
def test_what_is_not_there_is_one_sentence(path: str):
    with pytest.raises(UserError):
        ckd.load(path)


def test_a_config_that_names_code_is_not_obeyed(student: ckd.Trajectory, tmp_path: Path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemError('ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    ckd.export(str(student.path), out=tmp_path / "e")
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    (tmp_path / "e" / "config.json").write_text(json.dumps({**config, "model": "evil:net"}))
    with pytest.raises(UserError, match=r"names code, 'evil:net'\. If you trust this code, pass model='evil:net'"):
        ckd.load(tmp_path / "e")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "other"}, "was not written by checkpointkd"),
        ({"weights": "../student.safetensors"}, "its weights are in another folder"),
        ({"weights": 3}, "'weights' must have type str"),
        ({"sha256": "0"}, "differ from the hash in config.json"),
        ({"classes": []}, "its classes or its normalization"),
        ({"std": [0.0]}, "its classes or its normalization"),
        ({"mean": ["a"]}, "its classes or its normalization"),
        ({"model": "wrn_16_1"}, "does not fit wrn_16_1"),
        ({"model": "wrn_9"}, "Unknown model 'wrn_9'"),
    ],
)
def test_damaged_configs_are_one_sentence(student: ckd.Trajectory, tmp_path: Path, change: dict, sentence: str):
    ckd.export(str(student.path), out=tmp_path / "e")
    path = tmp_path / "e" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=sentence):
        ckd.load(tmp_path / "e")


def test_without_a_hub_the_folder_is_whole_and_it_is_said(student: ckd.Trajectory, tmp_path: Path):
    """A fresh process, since the Hub's library reads its address when it is imported."""
    command = [sys.executable, "-m", "checkpointkd.cli", "export", str(student.path), "--out", str(tmp_path / "e")]
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "x", "PATH": "", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [*command, "--push", "me/student"], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Could not upload" in done.stderr
    assert "The folder is complete" in done.stderr
    assert "Traceback" not in done.stderr
    ckd.load(tmp_path / "e")


LOADS = """
import sys
import checkpointkd as ckd
from checkpointkd.errors import UserError
for source, options in {sources!r}:
    try:
        print("loaded", ckd.load(source, **options).classes[:2])
    except UserError as error:
        print(error)
"""


def test_the_network_is_used_for_hf_names_without_local_only_alone(student: ckd.Trajectory, tmp_path: Path):
    """A server in the Hub's place counts the requests. A snapshot in the Hub's cache is used without any."""
    ckd.export(str(student.path), out=tmp_path / "export")
    snapshot = tmp_path / "hub" / "models--me--student" / "snapshots" / ("a" * 40)
    shutil.copytree(tmp_path / "export", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    requests: list[str] = []

    class Counting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    def loads(*sources: tuple[str, dict[str, object]]) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", LOADS.format(sources=sources)],
            cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    with ThreadingHTTPServer(("127.0.0.1", 0), Counting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        environment = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        *mistyped, stored, absent = loads(
            ("me/student", {}), ("me/student@last", {}), ("HF:me/student", {}), ("export/", {"local_only": True}),
            ("hf:me/student", {"local_only": True}), ("hf:me/other", {"local_only": True}),
        )  # fmt: skip
        assert not requests
        assert [line.partition(" at ")[0] for line in mistyped[:3]] == ["There is no run directory"] * 3
        assert mistyped[3] == stored == "loaded ['0', '1']"
        assert absent.startswith("There is no copy of hf:me/other on this machine. Leave out local_only=True")
        (lost,) = loads(("hf:me/other", {}))
        assert "Could not download 'me/other' from the Hugging Face Hub" in lost
        assert any("/me/other/" in path for path in requests)
        server.shutdown()


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_the_model_card_says_how_images_become_squares(tmp_path: Path, resize):
    """The card's transform, applied to the files, gives the pixels that the network was evaluated on."""
    folder = folder_of_digits(tmp_path / "images")
    settings = {"image_size": 16, "resize": resize, "select_on": "test"}
    run = ckd.train("wrn_10_1", data=f"folder:{folder}", epochs=1, batch_size=9, out=tmp_path / "run", **settings)
    ckd.export(str(run.path), out=tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    names: dict = {}
    exec(
        "from torchvision import transforms\n" + next(x for x in card.splitlines() if x.startswith("transform")), names
    )
    files = sorted((folder / "val").glob("*/*"))
    from PIL import Image

    seen = torch.stack([names["transform"](Image.open(file).convert("RGB")) for file in files])
    val = load_data(config_of(run.run.data)).val
    expected = run.last.network().normalized(val.to_float())
    assert torch.allclose(seen, expected, atol=1e-4)
    assert "Accuracy on the test set" in card
    assert "validation" not in card
