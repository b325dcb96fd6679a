"""Write folders of three checkpoints as other trainers do, with their own libraries where there is one.

Each writer fills a folder and returns the folder or wildcard to name, the network's name, and the weights by completed
epochs, as the trainer had them in memory.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import dataclasses
import decimal
import enum
import io
import json
import logging
import shutil
import sys
import types
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from checkpointkd.checkpoints.writers import lightning_callback, save_checkpoint, transformers_callback
from checkpointkd.data import Data

from .network import build, build_transformers

NET, EPOCHS = "tests.checkpoints.network:build", 3
States = dict[int, dict[str, Tensor]]
Written = tuple[str, str, States]


def loader(data: Data) -> DataLoader:
    mean, std = data.train.channel_statistics()
    pixels = (data.train.to_float() - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    return DataLoader(TensorDataset(pixels, data.train.labels_N), batch_size=50)


def epochs(model: nn.Module, data: Data, *, count: int = EPOCHS) -> Iterator[tuple[int, Any]]:
    """Train in a plain loop, and yield the epoch, counted from 0, and the optimizer."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(count):
        model.train()
        for images, labels in loader(data):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        yield epoch, optimizer


def kept(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def timm(folder: Path, data: Data) -> Written:
    from timm.utils import CheckpointSaver, ModelEmaV3

    model, states = build(10, 1), {}
    average = ModelEmaV3(model, decay=0.5)
    args = argparse.Namespace(model="net", lr=0.1, epochs=EPOCHS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saver = CheckpointSaver(
        model,
        optimizer,
        args=args,
        model_ema=average,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
        max_history=9,
    )
    for epoch, _ in epochs(model, data):
        average.update(model)
        saver.save_checkpoint(epoch, metric=0.1 * epoch)
        states[epoch + 1] = kept(model)
    return str(folder), NET, states


def lightning(
    folder: Path,
    data: Data,
    *,
    callbacks: Any = None,
    by_hand: Path | None = None,
    hyper_parameters: dict[str, Any] | None = None,
) -> Written:
    states: States = {}
    with quiet():
        import lightning.pytorch as pl
        from lightning.pytorch.callbacks import Callback, ModelCheckpoint

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = build(10, 1)
                self.criterion = nn.CrossEntropyLoss(weight=torch.ones(10))  # in the state dict, not of the network
                self.save_hyperparameters(hyper_parameters or {"lr": 0.1, "where": folder})

            def training_step(self, batch: Any, number: int) -> Tensor:
                return self.criterion(self.net(batch[0]), batch[1])

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

        class Keep(Callback):
            def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
                states[trainer.current_epoch + 1] = kept(pl_module.net)

        every_epoch = ModelCheckpoint(
            dirpath=folder, filename="{epoch}-{step}", save_top_k=-1, every_n_epochs=1, save_last=True
        )
        trainer = pl.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            default_root_dir=folder,
            enable_model_summary=False,
            callbacks=[Keep(), *(callbacks or [every_epoch])],
        )
        trainer.fit(Module(), loader(data))
        if by_hand is not None:
            trainer.save_checkpoint(by_hand)
    return str(folder), NET, states


def hugging_face(folder: Path, data: Data, *, callback: Any = None) -> Written:
    states: States = {}
    with quiet():
        from transformers import Trainer, TrainerCallback, TrainingArguments

        class Keep(TrainerCallback):
            def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
                states[round(state.epoch)] = kept(model)

        images, labels = (torch.cat(parts) for parts in zip(*loader(data), strict=True))
        rows = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
        arguments = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=50,
            report_to=[],
            save_strategy="no" if callback else "epoch",
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
        )
        model = build_transformers(10, 1)
        callbacks = [Keep(), *([callback] if callback else [])]
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=callbacks).train()
    return str(folder), "tests.checkpoints.network:build_transformers", states


def hugging_face_shards(folder: Path, data: Data) -> Written:
    """Write with save_pretrained in shards, beside the trainer's states."""
    written = hugging_face(folder, data)
    for epoch, checkpoint in enumerate(sorted(folder.glob("checkpoint-*"), key=_step), 1):
        model = build_transformers(10, 1)
        model.load_state_dict(written[2][epoch])
        (checkpoint / "model.safetensors").unlink()
        model.save_pretrained(checkpoint, max_shard_size="8KB")
        assert (checkpoint / "model.safetensors.index.json").exists()
    return written


def hugging_face_bin(folder: Path, data: Data) -> Written:
    """Write as transformers before version 5 did; later versions read it and do not write it."""
    written = hugging_face(folder, data)
    for epoch, checkpoint in enumerate(sorted(folder.glob("checkpoint-*"), key=_step), 1):
        (checkpoint / "model.safetensors").unlink()
        torch.save(written[2][epoch], checkpoint / "pytorch_model.bin")
    return written


def lightning_writer(folder: Path, data: Data) -> Written:
    return lightning(folder, data, callbacks=[lightning_callback(folder)])


def transformers_writer(folder: Path, data: Data) -> Written:
    return hugging_face(folder, data, callback=transformers_callback(folder))


def plain_writer(folder: Path, data: Data) -> Written:
    model, states = build(10, 1), {}
    for epoch, _ in epochs(model, data):
        save_checkpoint(folder, epoch=epoch + 1, model=model)
        states[epoch + 1] = kept(model)
    return str(folder), NET, states


def torchvision_reference(folder: Path, data: Data) -> Written:
    """Write the entries of torchvision's references/classification/train.py, a script that is in no package."""
    model, states = build(10, 1), {}
    for epoch, optimizer in epochs(model, data):
        content = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 30).state_dict(),
            "epoch": epoch,
            "args": argparse.Namespace(model="net", epochs=EPOCHS),
        }
        torch.save(content, folder / f"model_{epoch}.pth")
        torch.save(content, folder / "checkpoint.pth")
        states[epoch + 1] = kept(model)
    return str(folder), NET, states


def authors(folder: Path, data: Data) -> Written:
    """Write the entries and names of the paper's release, with a DataParallel network and two runs in one folder."""
    states: States = {}
    for number in (2, 1):
        model = build(10, 1)
        for epoch, optimizer in epochs(model, data):
            content = {
                "epoch": epoch + 1,
                "model_state": nn.DataParallel(model).state_dict(),
                "optim_state": optimizer.state_dict(),
                "best_valid_acc": 0.5,
            }
            torch.save(content, folder / f"wrn{number}_teacher{epoch + 1}_ckpt.pth.tar")
            states[epoch + 1] = kept(model)
    return str(folder / "wrn1_teacher*"), NET, states


def compiled(folder: Path, data: Data) -> Written:
    model, states = build(10, 1), {}
    for epoch, _ in epochs(model, data):
        torch.save(torch.compile(model).state_dict(), folder / f"net-epoch{epoch + 1:02}.pt")  # type: ignore[attr-defined]
        states[epoch + 1] = kept(model)
    return str(folder), NET, states


def state_dicts(folder: Path, data: Data) -> Written:
    """Write names that count from 0, and one that tells no epoch."""
    model, states = build(10, 1), {}
    for epoch, _ in epochs(model, data):
        torch.save(model.state_dict(), folder / f"net_{epoch}.pth")
        torch.save(model.state_dict(), folder / "final.pth")
        states[epoch + 1] = kept(model)
    return str(folder), NET, states


def old_state_dicts(folder: Path, data: Data) -> Written:
    """Write as PyTorch before 1.6 did: no archive, no checksums."""
    model, states = build(10, 1), {}
    for epoch, optimizer in epochs(model, data):
        content = {"net": model.state_dict(), "epoch": epoch + 1, "opt": optimizer.state_dict()}
        torch.save(content, folder / f"ckpt.{epoch + 1}.pt", _use_new_zipfile_serialization=False)
        states[epoch + 1] = kept(model)
    return str(folder), NET, states


def safetensors_files(folder: Path, data: Data) -> Written:
    model, states = build(10, 1), {}
    for epoch, _ in epochs(model, data):
        safetensors.torch.save_file(model.state_dict(), folder / f"model_{epoch + 1}.safetensors")
        states[epoch + 1] = kept(model)
    return str(folder), NET, states


def half_precision(folder: Path, data: Data) -> Written:
    model, states = build(10, 1), {}
    for epoch, _ in epochs(model, data):
        half = copy.deepcopy(model).half()
        torch.save({"state_dict": half.state_dict(), "meta": json.dumps({})}, folder / f"epoch_{epoch + 1}.pth")
        states[epoch + 1] = kept(half.float())
    return str(folder), NET, states


def lightning_hydra(folder: Path, data: Data) -> Written:
    """Write hyper-parameters as the Hydra template for Lightning does: OmegaConf, a partial, a network."""
    import functools

    from omegaconf import OmegaConf

    config = OmegaConf.create({"net": {"width": 12}, "lr": 0.1, "tags": ["dev"]})
    optimizer = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    return lightning(folder, data, hyper_parameters={"cfg": config, "optimizer": optimizer, "net": build(10, 1)})


def pickled_networks(folder: Path, data: Data) -> Written:
    model, states = build(10, 1), {}
    for epoch, _ in epochs(model, data):
        torch.save(nn.DataParallel(model), folder / f"net_epoch{epoch + 1}.pt")
        states[epoch + 1] = kept(model)
    return str(folder), NET, states


class Phase(enum.Enum):
    TRAIN = "train"


@dataclasses.dataclass
class Settings:
    lr: float = 0.1
    phase: Phase = Phase.TRAIN


def anything_beside(folder: Path, data: Data) -> Written:
    """Write objects beside the weights that PyTorch's restricted reader refuses."""
    model, states = build(10, 1), {}
    for epoch, optimizer in epochs(model, data):
        content = {
            "model": model.state_dict(),
            "epoch": epoch + 1,
            "history": collections.defaultdict(list, loss=[0.5, 0.4]),
            "recent": collections.deque([1, 2, 3], maxlen=3),
            "settings": Settings(),
            "space": types.SimpleNamespace(a=1),
            "id": uuid.UUID(int=5),
            "price": decimal.Decimal("0.1"),
            "optimizer": optimizer,
            "version": torch.__version__,
            "generator": np.random.default_rng(0),
        }
        torch.save(content, folder / f"checkpoint_{epoch + 1}.pt")
        states[epoch + 1] = kept(model)
    return str(folder), NET, states


def mmengine(folder: Path, data: Data) -> Written:
    """Write MMEngine's layout by hand, with its HistoryBuffer in a module of its name: the library needs OpenCV."""
    name = "mmengine.logging.history_buffer"
    module = types.ModuleType(name)
    exec("class HistoryBuffer:\n    def __init__(self, log):\n        self._log_history = log", module.__dict__)
    model, states = build(10, 1), {}
    with pytest.MonkeyPatch.context() as patch:
        for part in ("mmengine", "mmengine.logging", name):
            patch.setitem(sys.modules, part, module)
        for epoch, optimizer in epochs(model, data):
            content = {
                "meta": {"epoch": epoch + 1, "iter": 10 * (epoch + 1), "cfg": "model = dict()"},
                "state_dict": model.state_dict(),
                "message_hub": {"log_scalars": {"train/loss": module.HistoryBuffer(np.arange(5.0))}},
                "optimizer": optimizer.state_dict(),
                "param_schedulers": [{"last_step": epoch}],
            }
            torch.save(content, folder / f"epoch_{epoch + 1}.pth")
            states[epoch + 1] = kept(model)
    return str(folder), NET, states


def wrapped_parts(folder: Path, data: Data) -> Written:
    """Write the infixes of FSDP 1, of activation checkpointing and of DataParallel around a part."""
    model, states = build(10, 1), {}
    for epoch, _ in epochs(model, data):
        names = {name: name.replace("blocks.", "blocks.module.", 1) for name in model.state_dict()}
        names = {name: new.replace("stem.", "_fsdp_wrapped_module.stem.", 1) for name, new in names.items()}
        names = {name: new.replace("head.", "head._checkpoint_wrapped_module.", 1) for name, new in names.items()}
        state = {names[name]: tensor for name, tensor in model.state_dict().items()}
        torch.save({"model": state, "epoch": epoch + 1}, folder / f"ckpt_{epoch + 1}.pt")
        states[epoch + 1] = kept(model)
    return str(folder), NET, states


def accelerate(folder: Path, data: Data) -> Written:
    with quiet():
        from accelerate import Accelerator

        model, states = build(10, 1), {}
        for epoch, optimizer in epochs(model, data):
            accelerator = Accelerator(cpu=True)
            prepared = accelerator.prepare(model, optimizer)
            accelerator.save_state(str(folder / f"checkpoint_{epoch}"))
            del prepared
            states[epoch + 1] = kept(model)
    return str(folder), NET, states


def folder_of_one_file(folder: Path, data: Data) -> Written:
    model, states = build(10, 1), {}
    for epoch, optimizer in epochs(model, data):
        (folder / f"epoch_{epoch + 1}").mkdir()
        torch.save(model.state_dict(), folder / f"epoch_{epoch + 1}" / "model.pt")
        torch.save(optimizer.state_dict(), folder / f"epoch_{epoch + 1}" / "optimizer.pt")
        states[epoch + 1] = kept(model)
    return str(folder), NET, states


def distributed(folder: Path, data: Data) -> Written:
    import torch.distributed.checkpoint as dcp

    model, states = build(10, 1), {}
    for epoch, optimizer in epochs(model, data):
        with quiet():
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "train_state": {"step": epoch}}
            dcp.save(state, checkpoint_id=folder / f"epoch-{epoch + 1}")
        states[epoch + 1] = kept(model)
    return str(folder), NET, states


def hugging_face_fsdp(folder: Path, data: Data) -> Written:
    import torch.distributed.checkpoint as dcp

    model, states = build(10, 1), {}
    for epoch, _ in epochs(model, data):
        checkpoint = folder / f"checkpoint-{10 * (epoch + 1)}"
        with quiet():
            dcp.save({"model": model.state_dict()}, checkpoint_id=checkpoint / "pytorch_model_fsdp_0")
        state = {"epoch": float(epoch + 1), "global_step": 10 * (epoch + 1)}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        states[epoch + 1] = kept(model)
    return str(folder), NET, states


def deepspeed(folder: Path, data: Data) -> Written:
    """Write DeepSpeed's layout of ZeRO 1 and 2 by hand, as Lightning names its folder: the library needs a compiler."""
    model, states = build(10, 1), {}
    for epoch, _ in epochs(model, data):
        checkpoint = folder / f"epoch={epoch}.ckpt" / "checkpoint"
        checkpoint.mkdir(parents=True)
        content = {"module": model.state_dict(), "epoch": epoch, "dp_world_size": 2, "ds_config": {"zero": 2}}
        torch.save(content, checkpoint / "mp_rank_00_model_states.pt")
        torch.save({"optimizer_state_dict": {}}, checkpoint / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
        (checkpoint.parent / "latest").write_text("checkpoint")
        states[epoch + 1] = kept(model)
    return str(folder), NET, states


def mdistiller(folder: Path, data: Data) -> Written:
    """Write the names of mdistiller by hand, a repository that is in no package: files without endings."""
    model, states = build(10, 1), {}
    for epoch, optimizer in epochs(model, data):
        content = {
            "epoch": epoch + 1,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "best_acc": 0.5,
        }
        for name in (f"student_{epoch + 1}", "student_best", "latest"):
            torch.save(content, folder / name)
        states[epoch + 1] = kept(model)
    return str(folder), NET, states


def numpy_arrays(folder: Path, data: Data) -> Written:
    """Write arrays, as detectron2's model zoo has them."""
    model, states = build(10, 1), {}
    for epoch, _ in epochs(model, data):
        arrays = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
        torch.save({"model": arrays, "epoch": epoch + 1}, folder / f"model_{epoch + 1}.pth")
        states[epoch + 1] = kept(model)
    return str(folder), NET, states


WRITERS: dict[str, Callable[[Path, Data], Written]] = {
    "timm": timm,
    "Lightning": lightning,
    "Hugging Face": hugging_face,
    "Hugging Face, shards": hugging_face_shards,
    "Hugging Face, bin": hugging_face_bin,
    "torchvision reference": torchvision_reference,
    "CheckpointKD authors": authors,
    "state dict, compiled": compiled,
    "state dict": state_dicts,
    "dict of weights, old": old_state_dicts,
    "dict of weights, half": half_precision,
    "Lightning, Hydra": lightning_hydra,
    "pickled network": pickled_networks,
    "dict of weights, objects beside": anything_beside,
    "dict of weights, MMEngine": mmengine,
    "dict of weights, wrapped": wrapped_parts,
    "dict of weights, mdistiller": mdistiller,
    "dict of weights, NumPy": numpy_arrays,
    "Hugging Face, Accelerate": accelerate,
    "state dict, folders": folder_of_one_file,
    "torch.distributed.checkpoint": distributed,
    "Hugging Face, FSDP": hugging_face_fsdp,
    "dict of weights, DeepSpeed": deepspeed,
    "safetensors": safetensors_files,
    "safetensors, checkpointkd's writer": plain_writer,
    "safetensors, checkpointkd's writer (Lightning)": lightning_writer,
    "safetensors, checkpointkd's writer (transformers)": transformers_writer,
}


def copied(written: Written, tmp_path: Path) -> Written:
    source, model, states = written
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    copy = tmp_path / "external"
    shutil.copytree(folder, copy, symlinks=True)
    return str(copy / Path(source).relative_to(folder)), model, states


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the trainers' own warnings and messages."""
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "transformers")}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
