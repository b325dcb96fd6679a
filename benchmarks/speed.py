"""Measure the speed of training and distillation against the machine's peak and common practice, on real CIFAR-100.

    make bench CIFAR100=PATH          (python benchmarks/speed.py --cifar100 PATH)

Every ratio compares medians over rounds in which the parts take turns, in one process, on a few hundred images. Filling
a whole logit cache would take hours on a CPU. The networks are barely trained, because weights do not affect speed.
Prints a table and adds a line to benchmarks/results/speed.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import checkpointkd as ckd
from checkpointkd.checkpoints import resolve
from checkpointkd.config import Precision
from checkpointkd.data import Batch, Data, DataConfig, EpochLoader, load_data
from checkpointkd.device import pick_device
from checkpointkd.distill_config import KDConfig
from checkpointkd.losses import METHODS, LogitDistillation, Supervised
from checkpointkd.metrics import predict
from checkpointkd.models import build_network
from checkpointkd.recipes import recipe
from checkpointkd.teachers.cached_batches import FILL_BATCH, CachedTeacherBatches, with_cached_logits
from checkpointkd.teachers.ensemble import Teacher
from checkpointkd.training.loop import fit, start, step
from checkpointkd.training.run import benchmark_precision
from common import RESULTS, machine

BATCH = 128
STUDENTS = ("wrn_40_1", "resnet_32", "mobilenetv2_0.75")
ENSEMBLES = (1, 2, 5, 10)
VIEWS_MET = 162 * (1 - (1 - 1 / 162) ** 200)  # of an image's views, in 200 epochs, on average: 115
RECIPE = replace(recipe("cifar100"), epochs=1)
Job = Callable[[], Any]


def in_turn(jobs: dict[str, Job], *, rounds: int) -> dict[str, float]:
    """Return each job's median time in seconds. The jobs take turns; the first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            wait()
            began = time.perf_counter()
            job()
            wait()
            if turn > 0:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(measured) for name, measured in seconds.items()}


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Bench:
    def __init__(self, data: Data, *, images: int, rounds: int, device: torch.device, folder: Path) -> None:
        self.data, self.rounds, self.device, self.folder = data, rounds, device, folder
        self.images = data.train.subset(torch.arange(images))
        self.mean, self.std = data.train.channel_statistics()
        self.rows: list[dict[str, Any]] = []

    def network(self, name: str) -> nn.Module:
        return build_network(name, num_classes=100, in_channels=3, mean=self.mean, std=self.std)

    def batches(self) -> Any:
        return self.images.batches(batch_size=BATCH, seed=0, device=self.device)

    def epoch_of(self, name: str, objective: nn.Module, batches: EpochLoader, precision: Precision) -> Job:
        state = start(self.network(name), objective, RECIPE, device=self.device)

        def job() -> None:
            state.epoch = 0
            next(fit(state, batches, recipe=RECIPE, seed=0, precision=precision))

        return job

    def bare(self, name: str, precision: Precision) -> Job:
        state = start(self.network(name), Supervised(), RECIPE, device=self.device)
        state.model.train()
        batch = next(iter(self.batches().epoch(0)))
        return lambda: [step(state, batch, precision=precision, train_fraction=0.0) for _ in range(len(self.batches()))]

    def report(self, what: str, value: float, target: str, kept: bool | None, **more: Any) -> None:
        row = {"what": what, "value": round(value, 3), "target": target, "kept": kept, **more}
        self.rows.append(row)
        mark = {True: "kept", False: "MISSED", None: ""}[kept]
        print(f"{what:<78} {value:8.3f}   {target:<9} {mark}", flush=True)


def loop(bench: Bench, precisions: dict[str, Precision]) -> None:
    for name in STUDENTS:
        precision = precisions[name]
        times = in_turn(
            {
                "bare": bench.bare(name, precision),
                "fit": bench.epoch_of(name, Supervised(), bench.batches(), precision),
            },
            rounds=bench.rounds,
        )
        ratio, speed = times["bare"] / times["fit"], len(bench.images) / times["fit"]
        bench.report(
            f"{name}, {precision}: fit ÷ bare step, images/s",
            ratio,
            "≥ 0.97",
            ratio >= 0.97,
            images_per_s=round(speed, 1),
        )


def distilling(bench: Bench, teachers: dict[int, Teacher], precision: Precision, common: bool) -> None:
    name = "wrn_40_1"
    plain = bench.epoch_of(name, Supervised(), bench.batches(), precision)
    jobs: dict[str, Job] = {"plain": plain}
    for count, teacher in teachers.items():
        batches = with_cached_logits(
            bench.batches(), bench.images, teacher, precision=precision, limit=10**11, on_progress=lambda *_: None
        )
        assert isinstance(batches, CachedTeacherBatches)
        jobs[f"warm {count}"] = bench.epoch_of(
            name, LogitDistillation(METHODS["kd"](), teacher, KDConfig()), batches, precision
        )
    jobs["live 1"] = bench.epoch_of(
        name, LogitDistillation(METHODS["kd"](), teachers[1], KDConfig()), bench.batches(), precision
    )
    times = in_turn(jobs, rounds=bench.rounds)
    count_of = len(bench.images)
    for count in teachers:
        ratio = times[f"warm {count}"] / times["plain"]
        bench.report(f"{name}: KD from {count} kept teachers ÷ plain training, time", ratio, "≤ 1.05", ratio <= 1.05)
    fill = in_turn({"fill": filling(bench, teachers[1], precision)}, rounds=bench.rounds)["fill"] / FILL_BATCH
    live, warm = times["live 1"] / count_of, times["warm 1"] / count_of
    ratio = (VIEWS_MET * fill + 200 * warm) / (200 * live)
    bench.report(
        f"{name}: KD filling its table over 200 epochs ÷ live teacher, time",
        ratio,
        "≤ 0.85",
        ratio <= 0.85,
        fill_images_per_s=round(1 / fill, 1),
        live_images_per_s=round(1 / live, 1),
        warm_images_per_s=round(1 / warm, 1),
    )
    if not common:
        return
    for count, target in ((1, 3.5), (5, 9.0)):
        theirs = common_practice(bench, name, count)
        ours = in_turn({"ours": jobs[f"warm {count}"], "theirs": theirs}, rounds=max(2, bench.rounds // 2))
        per_image = ours["theirs"] / THEIR_STEPS / BATCH
        ratio = per_image / (ours["ours"] / count_of)
        bench.report(
            f"{name}: KD from {count} kept teachers ÷ common practice, images/s",
            ratio,
            f"≥ {target}",
            ratio >= target,
            common_images_per_s=round(1 / per_image, 1),
        )
        if count == 1:
            against_torchdistill(bench, name, live, warm)
            ratio = per_image / live
            bench.report(f"{name}: KD from a live teacher ÷ common practice, images/s", ratio, "≥ 2", ratio >= 2)


def against_torchdistill(bench: Bench, name: str, live: float, warm: float) -> None:
    """`live` and `warm` are our seconds for an image."""
    try:
        job = torchdistills(bench)
    except ImportError as error:
        print(f"torchdistill is not measured: {error}")
        return
    theirs = in_turn({"theirs": job}, rounds=max(2, bench.rounds // 2))["theirs"] / THEIR_STEPS / BATCH
    speed = round(1 / theirs, 1)
    bench.report(f"{name}: KD from a live teacher ÷ torchdistill, images/s", theirs / live, "", None, theirs=speed)
    ratio = theirs / warm
    bench.report(f"{name}: KD from a kept teacher ÷ torchdistill, images/s", ratio, "≥ 4", ratio >= 4)


def filling(bench: Bench, teacher: Teacher, precision: Precision) -> Job:
    """Compute one batch of missing logits with the teacher and cache them, each time for a new epoch."""
    images = bench.images.subset(torch.arange(FILL_BATCH))
    batches = images.batches(batch_size=BATCH, seed=1, device=bench.device)
    kept = with_cached_logits(batches, images, teacher, precision=precision, limit=10**11, on_progress=lambda *_: None)
    assert isinstance(kept, CachedTeacherBatches)
    views = iter(range(162))

    def job() -> None:
        kept.logits(torch.full((FILL_BATCH,), next(views), device=bench.device))

    return job


THEIR_STEPS = 4


def their_pictures(bench: Bench) -> Any:
    """A data set as in common practice: Pillow images, cropped and flipped by torchvision one at a time."""
    from PIL import Image
    from torch.utils.data import Dataset
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(bench.mean, bench.std),
        ]
    )
    pixels = (bench.images.subset(torch.arange(BATCH * THEIR_STEPS)).to_float() * 255).round().byte()
    pictures = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pixels]
    labels = bench.images.labels_N.tolist()

    class Pictures(Dataset):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, row: int) -> Any:
            return transform(pictures[row]), labels[row]

    return Pictures()


def torchdistills(bench: Bench) -> Job:
    """torchdistill, driven as its own example and its CIFAR-100 configuration for WRN-40-1 do."""
    from torch.utils.data import RandomSampler
    from torchdistill.core.distillation import get_distillation_box  # type: ignore[import-not-found]
    from torchdistill.misc.log import MetricLogger, SmoothedValue  # type: ignore[import-not-found]
    from torchdistill.models.classification.wide_resnet import wide_resnet  # type: ignore[import-not-found]

    loading = {"batch_size": BATCH, "num_workers": 2, "persistent_workers": True}
    whole = {"student_module_path": ".", "student_module_io": "output"}
    whole |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    kd = {"key": "KDLoss", "kwargs": {**whole, "temperature": 4.0, "alpha": 0.9, "reduction": "batchmean"}}
    settings = {
        "num_epochs": 200,
        "train_data_loader": {"dataset_id": "train", "sampler": {"class_or_func": RandomSampler}, "kwargs": loading},
        "teacher": {
            "sequential": [],
            "requires_grad": False,
            "frozen_modules": [],
            "forward_proc": "forward_batch_only",
        },
        "student": {
            "sequential": [],
            "requires_grad": True,
            "frozen_modules": [],
            "forward_proc": "forward_batch_only",
        },
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}}},
    }
    size: dict[str, Any] = {"dropout_p": 0.0, "num_classes": 100, "pretrained": False, "on_progress": False}
    teacher, student = (wide_resnet(40, width, **size).to(bench.device) for width in (2, 1))
    box: Any = get_distillation_box(
        teacher, student, {"train": their_pictures(bench)}, settings, bench.device, None, False, 1
    )

    def job() -> None:
        meters = MetricLogger(delimiter="  ")
        meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        box.pre_epoch_process(epoch=0)
        for images, targets, extra in meters.log_every(box.train_data_loader, 100, ""):
            images, targets = images.to(bench.device), targets.to(bench.device)
            loss = box.forward_process(images, targets, extra)
            box.post_forward_process(loss=loss)
            meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])

    return job


def common_practice(bench: Bench, name: str, teachers: int) -> Job:
    """Train as CIFAR distillation code bases do: fp32, NCHW, Pillow in a DataLoader, live teachers, `.item()`."""
    from torch.utils.data import DataLoader

    loader = DataLoader(their_pictures(bench), BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    student = build_network(name, num_classes=100, in_channels=3, mean=[0] * 3, std=[1] * 3).to(bench.device).train()
    ensemble = [
        build_network("wrn_40_2", num_classes=100, in_channels=3, mean=[0] * 3, std=[1] * 3).to(bench.device).eval()
        for _ in range(teachers)
    ]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    tau, alpha = 4.0, 0.5

    def job() -> None:
        for images, targets in loader:
            images, targets = images.to(bench.device), targets.to(bench.device)
            with torch.no_grad():
                target = torch.stack([(teacher(images) / tau).softmax(-1) for teacher in ensemble]).mean(0)
            logits = student(images)
            soft = nn.functional.kl_div((logits / tau).log_softmax(-1), target, reduction="batchmean") * tau**2
            loss = alpha * nn.functional.cross_entropy(logits, targets) + (1 - alpha) * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            (logits.argmax(-1) == targets).float().mean().item()

    return job


def evaluating(bench: Bench) -> None:
    network = bench.network("wrn_40_2").to(bench.device).eval()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    some = bench.images.subset(torch.arange(500))
    images = some.to_float().to(bench.device, memory_format=torch.channels_last)

    def forward() -> None:
        with torch.no_grad():
            network(images).cpu()

    times = in_turn({"bare": forward, "predict": lambda: predict(network, some)}, rounds=bench.rounds)
    ratio = times["bare"] / times["predict"]
    bench.report("wrn_40_2: evaluating a checkpoint ÷ bare forward, images/s", ratio, "≥ 0.97", ratio >= 0.97)


def command_line(bench: Bench) -> None:
    command = Path(sys.executable).with_name("checkpointkd")

    def help_() -> None:
        subprocess.run([command, "--help"], capture_output=True, check=True)

    seconds = in_turn({"help": help_}, rounds=5)["help"]
    bench.report("checkpointkd --help, seconds", seconds, "< 0.5", seconds < 0.5)


def compiling(bench: Bench, precisions: dict[str, Precision]) -> None:
    for name in STUDENTS:
        compiled = start(bench.network(name), Supervised(), RECIPE, device=bench.device)
        compiled.model.compile()
        compiled.model.train()
        batch = next(iter(bench.batches().epoch(0)))
        began = time.perf_counter()
        step(compiled, batch, precision=precisions[name], train_fraction=0.0)
        wait()
        first = time.perf_counter() - began
        steps = range(len(bench.batches()))
        precision: Precision = precisions[name]
        times = in_turn(
            {
                "eager": bench.bare(name, precision),
                "compiled": lambda: [step(compiled, batch, precision=precision, train_fraction=0.0) for _ in steps],  # noqa: B023
            },
            rounds=bench.rounds,
        )
        ratio = times["eager"] / times["compiled"]
        bench.report(
            f"{name}, {precision}: --compile ÷ without, images/s", ratio, "", None, first_step_seconds=round(first, 1)
        )


def at_once(bench: Bench, path: str) -> None:
    """Two students one after the other on all threads, and at once, each in a process with half of them."""

    def students(name: str, threads: int, together: bool) -> None:
        one = [sys.executable, __file__, "--cifar100", path, "--student", name]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        processes = []
        for _ in range(2):
            processes.append(subprocess.Popen(one, env=environment, stdout=subprocess.PIPE, text=True))
            if not together:
                spent.append(float(processes[-1].communicate()[0]))
        if together:
            spent.append(max(float(process.communicate()[0]) for process in processes))

    cores = os.cpu_count() or 1
    for name in ("wrn_10_1", "wrn_40_1"):
        spent: list[float] = []
        students(name, cores, together=False)
        in_turn_seconds = sum(spent)
        spent.clear()
        students(name, max(1, cores // 2), together=True)
        ratio = in_turn_seconds / spent[0]
        bench.report(f"{name}: two students at once, half the threads each ÷ in turn, speed", ratio, "", None)


def one_student(bench: Bench, name: str) -> None:
    """For `at_once`: prints the seconds of some epochs without the start of the process."""
    precision: Precision = "bf16" if name == "wrn_40_1" else "fp32"
    job = bench.epoch_of(name, Supervised(), bench.batches(), precision)
    print(in_turn({name: job}, rounds=5)[name] * 5)


class BytesMoved(TorchDispatchMode):
    """Counts the bytes that a step's operators read and write when none is fused with another."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            for value in (*args, *(result if isinstance(result, (tuple, list)) else [result])):
                if isinstance(value, torch.Tensor):
                    self.total += value.nbytes
        return result


def floors(bench: Bench, precisions: dict[str, Precision]) -> dict[str, Any]:
    """Arithmetic and bytes of a training step per image, and how long the machine needs for either at its measured
    rates: of a large matrix product, and of copying a large tensor."""
    rates: dict[str, float] = {}
    size = 2048 if bench.device.type == "cpu" else 8192
    for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        matrix = torch.randn(size, size, device=bench.device, dtype=dtype)
        seconds = in_turn({"product": lambda: matrix @ matrix}, rounds=5)["product"]  # noqa: B023
        rates[f"{kind}_flop_per_s"] = 2 * size**3 / seconds
    source = torch.zeros(1 << 28, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    rates["bytes_per_s"] = 2 * source.nbytes / in_turn({"copy": lambda: target.copy_(source)}, rounds=5)["copy"]
    found: dict[str, Any] = {"rates": {name: f"{rate:.3g}" for name, rate in rates.items()}}
    for name in (*STUDENTS, "wrn_40_2"):
        precision = precisions[name]
        state = start(bench.network(name), Supervised(), RECIPE, device=bench.device)
        batch: Batch = next(iter(bench.batches().epoch(0)))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            state.model(batch.images_BCHW)
        with BytesMoved() as moved:
            step(state, batch, precision=precision, train_fraction=0.0)
        # Backward is twice forward; the counter's own figure for it is wrong for convolutions in groups.
        flops, nbytes = 3 * counter.get_total_flops() / BATCH, moved.total / BATCH
        found[name] = {
            "precision": precision,
            "mflop_per_image": round(flops / 1e6, 1),
            "mbyte_per_image": round(nbytes / 1e6, 2),
            "images_per_s_by_arithmetic": round(rates[f"{precision}_flop_per_s"] / flops),
            "images_per_s_by_bytes": round(rates["bytes_per_s"] / nbytes),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar100", required=True, help="its folder")
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--student", help=argparse.SUPPRESS)
    options = parser.parse_args()
    declare_torchvisions_schemas()
    device = pick_device("auto")
    data = load_data(DataConfig(data=f"cifar100:{options.cifar100}"))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(data, images=options.images, rounds=options.rounds, device=device, folder=Path(folder))
        if options.student:
            one_student(bench, options.student)
            return
        print(json.dumps(machine()))
        precisions: dict[str, Precision] = {
            name: benchmark_precision(bench.network(name), data, RECIPE, device) for name in (*STUDENTS, "wrn_40_2")
        }
        limits = floors(bench, precisions)
        print(json.dumps(limits, indent=1))
        os.environ["CHECKPOINTKD_HOME"] = f"{folder}/home"
        ckd.train(
            "wrn_40_2",
            data=f"cifar100:{options.cifar100}",
            train_images=200,
            epochs=10,
            save_every=1,
            precision=precisions["wrn_40_2"],
            out=f"{folder}/teacher",
        )
        teachers = {
            count: Teacher([resolve(f"{folder}/teacher@{epoch + 1}") for epoch in range(count)], device=device)
            for count in ENSEMBLES
        }
        loop(bench, precisions)
        evaluating(bench)
        command_line(bench)
        distilling(bench, teachers, precisions["wrn_40_1"], common=True)
        compiling(bench, precisions)
        if device.type == "cpu":
            at_once(bench, options.cifar100)
        line = {"machine": machine(), "images": options.images, "rounds": options.rounds, "floors": limits}
        with open(RESULTS / "speed.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "rows": bench.rows}, ensure_ascii=False) + "\n")


def declare_torchvisions_schemas() -> None:
    """torchvision's wheel is built for PyTorch with CUDA; beside the CPU build it imports once these two are known."""
    if not torch.cuda.is_available():
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT.append(library)


KEPT: list[Any] = []  # a library's declarations go when it does


if __name__ == "__main__":
    main()
