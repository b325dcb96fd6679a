"""`ckd.teacher`: Eq. 2 in training loops of others."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import checkpointkd as ckd
from checkpointkd import storage
from checkpointkd.data import DataConfig, load_data
from checkpointkd.distill_config import KDConfig
from checkpointkd.errors import UserError
from checkpointkd.losses import METHODS, LogitDistillation, soft_targets
from checkpointkd.seeding import derive_seed
from checkpointkd.teachers.ensemble import open_teacher

TAU = 4.0


@pytest.fixture
def refs(teacher_run: Path) -> list[str]:
    return [f"{teacher_run}@2", f"{teacher_run}@last"]


@pytest.fixture(scope="module")
def images_BCHW() -> Tensor:
    return next(load_data(DataConfig(data="digits", train_images=60)).train.iter_batches(20))


@pytest.mark.parametrize("weights", [None, (0.25, 0.75)])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_softmax_of_the_logits_is_equation_2(refs: list[str], images_BCHW: Tensor, average: Any, weights: Any):
    members = torch.stack([ckd.load(ref)(images_BCHW) for ref in refs]).detach()
    expected = soft_targets(members, tau=TAU, average=average, weights=weights)
    logits_BK = ckd.teacher(*refs, tau=TAU, average=average, weights=weights)(images_BCHW)
    torch.testing.assert_close((logits_BK / TAU).softmax(-1), expected)
    assert not logits_BK.requires_grad


def test_single_teacher_returns_its_own_logits(refs: list[str], images_BCHW: Tensor):
    torch.testing.assert_close(ckd.teacher(refs[0], tau=TAU)(images_BCHW), ckd.load(refs[0])(images_BCHW).detach())


def test_module_is_frozen_and_stays_in_evaluation_mode(refs: list[str], images_BCHW: Tensor):
    teacher = ckd.teacher(*refs)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    outer = nn.ModuleDict({"teacher": teacher, "student": nn.Linear(2, 2)}).train()
    assert outer.training
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    copied = copy.deepcopy(teacher)
    torch.testing.assert_close(copied(images_BCHW), teacher(images_BCHW))
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert teacher.classes == [str(digit) for digit in range(10)]
    assert teacher.references == refs


def test_normalized_images_are_taken_back_to_the_unit_range(refs: list[str], images_BCHW: Tensor):
    mean, std = (0.3,), (0.2,)
    teacher = ckd.teacher(*refs, normalized=(mean, std))
    torch.testing.assert_close(
        teacher((images_BCHW - 0.3) / 0.2), ckd.teacher(*refs)(images_BCHW), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ((0.0, 255.0), {}, r"but these images are in \[0, 255\], and `normalized` is not given"),
        ((-2.0, 2.0), {}, r"images are in \[-2, 2\], .* images are normalized, .* normalized=\(mean, std\)"),
        ((-2.0, 2.0), {"normalized": ((0.5,), (0.1,))}, None),
        ((-9.0, 2.0), {"normalized": ((0.5,), (0.1,))}, "computed with the mean and std of `normalized`"),
    ],
)
def test_first_images_out_of_range_are_refused(refs: list[str], images: Any, options: Any, message: str | None):
    low, high = images
    images_BCHW = torch.linspace(low, high, 64).reshape(1, 1, 8, 8)
    teacher = ckd.teacher(*refs, **options)
    if message is None:
        assert teacher(images_BCHW).shape == (1, 10)
    else:
        with pytest.raises(UserError, match=message):
            teacher(images_BCHW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0.0}, "tau must be above 0"),
        ({"tau": "4"}, None),
        ({"tau": None}, "tau takes finite numbers, not"),
        ({"weights": 0.5}, "weights takes finite numbers, not 0.5"),
        ({"normalized": (0.5, 0.5)}, "a mean and a positive std of each channel"),
        ({"normalized": ()}, "a mean and a positive std of each channel"),
        ({"normalized": ((float("nan"),), (1.0,))}, "a mean and a positive std of each channel"),
        ({"normalized": (torch.tensor([0.5]), torch.tensor([0.2]))}, None),
        ({"device": "tpu9"}, "The device 'tpu9' cannot be used"),
        ({"weights": [1.0]}, "weights has 1 values for 2 checkpoints"),
        ({"weights": [0.9, 0.9]}, "weights must be at least 0 and sum to 1"),
        ({"average": "mean"}, "'mean'"),
        ({"ensemble": "snapshot:2"}, "takes 1 run, not 2"),
        ({"normalized": ((0.5, 0.5), (0.1,))}, "a mean and a positive std of each channel"),
        ({"normalized": ((0.5,), (0.0,))}, "a mean and a positive std of each channel"),
    ],
)
def test_wrong_values_are_refused(refs: list[str], options: dict[str, Any], message: str | None):
    if message is None:  # not wrong
        assert ckd.teacher(*refs, **options).references == refs
        return
    with pytest.raises(UserError, match=message):
        ckd.teacher(*refs, **options)


def test_normalization_of_other_channels_is_refused(refs: list[str]):
    with pytest.raises(UserError, match="normalized has 2 values of mean and std, but the images have 3 channels"):
        ckd.teacher(*refs, normalized=((0.5, 0.5), (0.2, 0.2)))(torch.zeros(2, 3, 8, 8))


def test_references_are_texts_or_paths(refs: list[str]):
    assert ckd.teacher(Path(refs[0])).references == refs[:1]
    with pytest.raises(UserError, match="at least one checkpoint reference"):
        ckd.teacher()
    with pytest.raises(UserError, match=r"takes references one by one, .* not a list"):
        ckd.teacher(refs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"not shape \(2, 1, 8, 8\) of uint8"),
        (torch.zeros(1, 8, 8), r"not shape \(1, 8, 8\) of float32"),
        (np.zeros((2, 1, 8, 8)), "takes a tensor of images .*, not ndarray"),
        (torch.zeros(2, 5, 8, 8), r"cannot take images of shape \(2, 5, 8, 8\)"),
        (torch.full((2, 1, 8, 8), float("nan")), r"images are in \[nan, nan\]"),
    ],
)
def test_wrong_images_are_refused(refs: list[str], images: Tensor, message: str):
    teacher = ckd.teacher(*refs)
    with pytest.raises(UserError, match=message):
        teacher(images)
    assert teacher(torch.zeros(0, 1, 8, 8)).shape == (0, 10)
    assert teacher(torch.zeros(2, 1, 8, 8, dtype=torch.float64)).shape == (2, 10)


def test_plain_loop_has_the_losses_of_our_objective(refs: list[str]):
    """The same batches in a plain loop with `ckd.teacher` and in our objective give equal losses, step by step."""
    data = load_data(DataConfig(data="digits", train_images=100))
    teacher, members = ckd.teacher(*refs, tau=TAU), open_teacher(refs)
    objective = LogitDistillation(METHODS["kd"](), members, KDConfig(alpha=0.3, tau=TAU))
    students = [ckd.load(refs[0]).train().requires_grad_() for _ in range(2)]
    optimizers = [torch.optim.SGD(student.parameters(), lr=0.05) for student in students]
    for epoch in range(2):
        torch.manual_seed(derive_seed("test", epoch))
        for batch in data.train.batches(batch_size=20, seed=0, device="cpu").epoch(epoch):
            ours = objective(students[0], batch, 0.5)[0].mean()
            logits_BK = students[1](batch.images_BCHW)
            target_BK = (teacher(batch.images_BCHW) / TAU).softmax(-1)
            soft = F.kl_div((logits_BK / TAU).log_softmax(-1), target_BK, reduction="batchmean")
            plain = 0.3 * F.cross_entropy(logits_BK, batch.labels_B) + 0.7 * TAU**2 * soft
            assert plain.item() == pytest.approx(ours.item(), rel=5e-3), "our teachers' logits are rounded to float16"
            for optimizer, loss in zip(optimizers, (ours, plain), strict=True):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def test_module_teaches_in_timms_distillation_task(refs: list[str]):
    """timm reads the normalization of the teacher from `pretrained_cfg`, so that the teacher sees images in [0, 1]."""
    import timm
    from timm.task import LogitDistillationTask

    teacher = ckd.teacher(*refs, tau=TAU)
    student = timm.create_model("resnet18", num_classes=10)
    task = LogitDistillationTask(student, teacher_model=teacher, temperature=TAU, task_loss_weight=0.5, verbose=False)
    images_BCHW, labels_B = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    seen: list[Tensor] = []
    teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    task.train()
    loss = task((images_BCHW - task.student_mean) / task.student_std, labels_B)["loss"]
    torch.testing.assert_close(seen[0], images_BCHW, atol=1e-5, rtol=1e-5)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "accelerate"])
def test_module_teaches_in_several_processes(refs: list[str], how: str, tmp_path: Path):
    """Two processes with half of each batch learn what one process learns, and the teacher stays as it is."""
    script = Path(__file__).with_name("teacher_processes.py")
    for world in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
        done = subprocess.run(
            [*command, str(script), refs[1], str(tmp_path), how], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    (alone, teacher), *others = (torch.load(tmp_path / f"{how}-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for student, same_teacher in others:
        torch.testing.assert_close(student, alone)
        assert all(torch.equal(value, teacher[name]) for name, value in same_teacher.items())
    assert all(torch.equal(value, teacher[name]) for name, value in ckd.teacher(refs[1]).state_dict().items())
    if how == "accelerate":
        for world in (1, 2):
            files = sorted((tmp_path / f"saved-{world}").glob("*.safetensors"))
            assert [file.name for file in files] == [f"epoch-000{epoch}.safetensors" for epoch in (1, 2, 3)]
            tensors, metadata = storage.load_tensors(files[-1])  # raises if the checksum differs
            assert (metadata["epoch"], metadata["mean"], metadata["std"]) == ("3", [0.0], [1.0])
            saved = {name.removeprefix("student."): value for name, value in tensors.items() if "student." in name}
            torch.testing.assert_close(saved, dict(alone))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of PyTorch itself
def test_a_checkpoint_of_a_compiled_model_has_the_plain_names(tmp_path: Path):
    from accelerate import Accelerator

    model = nn.Linear(2, 2)
    accelerator = Accelerator(cpu=True)
    prepared = torch.compile(accelerator.prepare(model))
    path = ckd.save_checkpoint(tmp_path, epoch=1, model=prepared, accelerator=accelerator)  # type: ignore[arg-type]
    assert storage.load_tensors(path)[0].keys() == {"weight", "bias"}
    with pytest.raises(UserError, match="accelerator must be the Accelerator of your loop"):
        ckd.save_checkpoint(tmp_path, epoch=2, model=model, accelerator=True)
    with pytest.raises(UserError, match="holds NaN or infinite numbers after epoch 2"):
        ckd.save_checkpoint(tmp_path, epoch=2, model=_with_nan(model), accelerator=accelerator)


def _with_nan(model: nn.Linear) -> nn.Linear:
    model.weight.data[0] = float("nan")
    return model
