"""One exam for all methods: against their papers' equations by hand, by invariances, by gradients, and at work."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import checkpointkd as ckd
from checkpointkd.config import DistillConfig, KDConfig
from checkpointkd.data import Batch, DataConfig, load_data
from checkpointkd.errors import UserError
from checkpointkd.losses import METHODS, FeatureDistillation, defaults, distillation, takes_features
from checkpointkd.losses.crd import CRD
from checkpointkd.losses.features import FeatureSpec
from checkpointkd.losses.objectives import FeaturePaths
from checkpointkd.models import Network, build_network, last_map_path, stage_paths, vector_path
from checkpointkd.teachers.ensemble import open_teacher

from . import by_hand

B, K, N = 5, 4, 12
OF_LOGITS = [name for name in METHODS if not takes_features(name)]
OF_FEATURES = [name for name in METHODS if takes_features(name)]
RELATIONAL = ["sp", "cc", "rkd", "pkt"]  # how examples lie to each other; sizes may differ


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([0, 1, 2, 3, 1])
BATCH = Batch(torch.zeros(B, 1, 8, 8), LABELS, torch.tensor([4, 0, 7, 3, 9]), None)


def _features(name: str, *, seed: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """The student's and the teacher's features of a batch, of the sizes that suit the method."""
    if METHODS[name].takes == "stages":
        channels = [(2, 3), (3, 4)] if name != "fsp" else [(3, 3), (4, 4)]
    else:
        channels = [(3, 5)]
    extent = 1 if METHODS[name].takes == "vector" else 2
    ours = [_random(B, C, extent, extent, seed=seed + n) for n, (C, _) in enumerate(channels)]
    theirs = [_random(B, D, extent, extent, seed=seed + 10 + n) for n, (_, D) in enumerate(channels)]
    return ours, theirs


def _pairing(ours: list[Tensor], theirs: list[Tensor], *, channel_adapter: bool = False) -> FeatureSpec:
    def sizes(features: list[Tensor]) -> dict[str, tuple[int, int, int]]:
        return {f"layer{n}": (one.shape[1], one.shape[2], one.shape[3]) for n, one in enumerate(features)}

    labels = torch.arange(N) % K
    labels[BATCH.index_B] = LABELS
    return FeatureSpec(sizes(ours), sizes(theirs), labels, torch.arange(N), channel_adapter)


def _method(name: str, ours: list[Tensor], theirs: list[Tensor], **more: Any) -> nn.Module:
    torch.manual_seed(0)
    return METHODS[name](_pairing(ours, theirs, **more)).double()


def _expected(name: str, method: Any, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """Each example's term, or, of methods that compare examples, the mean, by hand."""
    s, t = [one.tolist() for one in ours], [one.tolist() for one in theirs]
    layers = range(len(ours))
    if name == "fitnets":
        conv, norm = method.regressors[0].conv, method.regressors[0].norm
        moments = [moment.tolist() for moment in (norm.running_mean, norm.running_var)]
        weight = conv.weight[:, :, 0, 0].tolist()
        return torch.tensor([by_hand.fitnets(s[0][b], t[0][b], weight, *moments) for b in range(B)])
    if name == "at":
        return torch.tensor([sum(by_hand.at(s[n][b], t[n][b]) for n in layers) for b in range(B)])
    if name == "vid":
        weights = [[conv.weight[:, :, 0, 0].tolist() for conv in mean[::2]] for mean in method.means]
        scales = [scale.tolist() for scale in method.scales]
        return torch.tensor(
            [sum(by_hand.vid(s[n][b], t[n][b], weights[n], scales[n]) for n in layers) for b in range(B)]
        )
    if name == "fsp":
        return torch.tensor([by_hand.fsp([s[n][b] for n in layers], [t[n][b] for n in layers]) for b in range(B)])
    if name == "sp":
        return torch.tensor(by_hand.sp(s[0], t[0]))
    vectors = [[by_hand.vector(one) for one in maps] for maps in (s[0], t[0])]
    return torch.tensor(getattr(by_hand, name)(*vectors))


@pytest.mark.parametrize("name", OF_LOGITS)
def test_methods_of_predictions_against_their_equations(name: str):
    student, teachers = _random(B, K), _random(2, B, K, seed=1)
    settings = KDConfig(tau=2.5)
    got = METHODS[name]()(student, teachers, LABELS, settings, None)
    by_example = teachers.transpose(0, 1).tolist()
    rows = range(B)
    expected = {
        "kd": lambda: [
            2.5**2 * by_hand.kl(by_hand.mixed(by_example[b], 2.5), by_hand.softmax(student[b].tolist(), 2.5))
            for b in rows
        ],
        "lskd": lambda: [by_hand.lskd(student[b].tolist(), by_example[b], 2.5) for b in rows],
        "dkd": lambda: [by_hand.dkd(student[b].tolist(), by_example[b], int(LABELS[b]), 2.5) for b in rows],
        "dist": lambda: by_hand.dist(student.tolist(), by_example, 2.5),
    }[name]()
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in OF_FEATURES if name != "crd"])
def test_methods_of_features_against_their_equations(name: str):
    ours, theirs = _features(name)
    method = _method(name, ours, theirs)
    method(ours, theirs, BATCH)  # batch norm has seen something
    got = method.eval()(ours, theirs, BATCH)
    assert got.shape == (B,)
    expected = _expected(name, method, ours, theirs).double()
    torch.testing.assert_close(got.mean() if expected.dim() == 0 else got, expected, rtol=1e-6, atol=1e-9)


def test_crd_against_its_equations():
    """Both ways round, with the memories as they were, and Z from the first batch."""
    ours, theirs = _features("crd")
    torch.manual_seed(0)
    method = CRD(_pairing(ours, theirs), negatives=6).double()
    memories = {name: getattr(method, f"memory_{name}_NE").clone() for name in ("ours", "theirs")}
    torch.manual_seed(3)
    pairs = method.others(LABELS)
    torch.manual_seed(3)
    got = method(ours, theirs, BATCH)
    expected = torch.zeros(B, dtype=torch.float64)
    for side, features, memory in (("ours", ours[0], memories["theirs"]), ("theirs", theirs[0], memories["ours"])):
        layer = getattr(method, f"embed_{side}")
        embedded = [
            by_hand.linear(layer.weight.tolist(), layer.bias.tolist(), by_hand.vector(one)) for one in features.tolist()
        ]
        embedded = [[value / by_hand.norm(one) for value in one] for one in embedded]
        rows = [[int(BATCH.index_B[b]), *pairs[b].tolist()] for b in range(B)]
        likeness = [
            torch.tensor(by_hand.dot(embedded[b], memory[row].tolist()) / 0.07).exp().item()
            for b in range(B)
            for row in rows[b]
        ]
        z = by_hand.mean(likeness) * N
        torch.testing.assert_close(getattr(method, f"scale_{side}").item(), z, rtol=1e-6, atol=0.0)
        for b in range(B):
            positive, *negatives = (memory[row].tolist() for row in rows[b])
            expected[b] += by_hand.crd_term(embedded[b], positive, negatives, z, N)
        changed = getattr(method, f"memory_{side}_NE")[BATCH.index_B]
        halfway = 0.5 * memories[side][BATCH.index_B] + 0.5 * torch.tensor(embedded, dtype=torch.float64)
        torch.testing.assert_close(changed, halfway / halfway.norm(dim=1, keepdim=True))
        untouched = [row for row in range(N) if row not in BATCH.index_B.tolist()]
        assert torch.equal(getattr(method, f"memory_{side}_NE")[untouched], memories[side][untouched])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


def test_crds_negatives_are_of_other_classes_and_all_of_them():
    ours, theirs = _features("crd")
    pairing = _pairing(ours, theirs)
    method = CRD(pairing, negatives=400)
    for label, drawn in zip(LABELS, method.others(LABELS), strict=True):
        assert set(drawn.tolist()) == set((pairing.labels_N != label).nonzero().flatten().tolist())


def test_crd_finds_an_images_row_by_its_official_number():
    ours, theirs = _features("crd")
    labels, numbers = torch.arange(N) % K, torch.arange(N) * 3 + 2
    method = CRD(FeatureSpec({"a": (3, 1, 1)}, {"b": (5, 1, 1)}, labels, numbers), negatives=3)
    before = method.memory_ours_NE.clone()
    method([ours[0].float()], [theirs[0].float()], Batch(BATCH.images_BCHW, LABELS, numbers[[1, 3, 5, 7, 9]], None))
    changed = (method.memory_ours_NE != before).any(1).nonzero().flatten()
    assert changed.tolist() == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("name", OF_LOGITS)
def test_a_student_that_agrees_has_nothing_to_learn(name: str):
    same = _random(B, K)
    student = same.clone().requires_grad_()
    loss = METHODS[name]()(student, same[None], LABELS, KDConfig(tau=3.0), None)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.zeros(B).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(student.grad, torch.zeros(B, K).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name in OF_FEATURES if name not in ("fitnets", "vid", "crd")])
def test_a_student_with_the_teachers_features_has_nothing_to_learn(name: str):
    """But for methods whose own layers stand in between."""
    _, theirs = _features(name)
    ours = [one.clone().requires_grad_() for one in theirs]
    loss = _method(name, ours, theirs)(ours, theirs, BATCH)
    torch.testing.assert_close(loss, torch.zeros(B).double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_the_same_teacher_several_times_is_one_teacher(name: str):
    student, teacher = _random(B, K), _random(1, B, K, seed=1)
    method, settings = METHODS[name](), KDConfig(tau=2.0)
    one = method(student, teacher, LABELS, settings, None)
    torch.testing.assert_close(method(student, teacher.repeat(3, 1, 1), LABELS, settings, None), one)
    other = torch.cat([teacher, _random(1, B, K, seed=2)])
    torch.testing.assert_close(method(student, other, LABELS, settings, [1.0, 0.0]), one)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_methods_of_predictions_know_what_does_not_matter(name: str):
    """A constant added to logits says nothing; lskd heeds no scale either."""
    student, teachers = _random(B, K), _random(2, B, K, seed=1)
    method, settings = METHODS[name](), KDConfig(tau=2.0)
    expected = method(student, teachers, LABELS, settings, None)
    torch.testing.assert_close(method(student + 3, teachers - 5, LABELS, settings, None), expected)
    scaled = method(3 * student, teachers, LABELS, settings, None)
    if name == "lskd":
        torch.testing.assert_close(scaled, expected)
    else:
        assert not torch.allclose(scaled, expected)


@pytest.mark.parametrize("name", OF_FEATURES)
def test_methods_of_features_know_what_does_not_matter(name: str):
    """The order of channels, for those that match no channel; a scale, for those that normalize; a rotation, for those
    that only compare examples; and examples in another order, for all."""
    ours, theirs = _features(name)
    method = _method(name, ours, theirs).eval()

    def term(ours: list[Tensor], batch: Batch = BATCH, theirs: list[Tensor] = theirs) -> Tensor:
        torch.manual_seed(7)
        return method(ours, theirs, batch)

    expected = term(ours)
    shuffled = [one.flip(1) for one in ours]
    if name in ("at", *RELATIONAL):
        torch.testing.assert_close(term(shuffled), expected)
        torch.testing.assert_close(term([3 * one for one in ours]), expected)
    else:
        assert not torch.allclose(term(shuffled), expected)
        assert not torch.allclose(term([3 * one for one in ours]), expected)
    if name in RELATIONAL:
        rotation = torch.linalg.qr(_random(3, 3, seed=5)).Q
        rotated = [torch.einsum("bchw,cd->bdhw", one, rotation) for one in ours]
        torch.testing.assert_close(term(rotated), expected)
    if name != "crd":  # whose negatives are drawn by place
        order = torch.tensor([3, 0, 4, 1, 2])
        turned = Batch(BATCH.images_BCHW, LABELS[order], BATCH.index_B[order], None)
        again = term([one[order] for one in ours], turned, [one[order] for one in theirs])
        torch.testing.assert_close(again, expected[order])


@pytest.mark.parametrize("name", list(METHODS))
def test_gradients_by_finite_differences(name: str):
    if not takes_features(name):
        method, teachers, settings = METHODS[name](), _random(2, B, K, seed=1), KDConfig(tau=2.0)
        student = _random(B, K).requires_grad_()
        assert torch.autograd.gradcheck(lambda z: method(z, teachers, LABELS, settings, None), student)
        return
    ours, theirs = _features(name)
    if name == "crd":
        torch.manual_seed(0)
        layered: nn.Module = CRD(_pairing(ours, theirs), negatives=4).double()
        layered(ours, theirs, BATCH)  # Z is known from here on
        layered.eval()
    else:
        layered = _method(name, ours, theirs)
    inputs = [one.requires_grad_() for one in ours]
    own = list(layered.parameters())

    def term(*values: Tensor) -> Tensor:
        torch.manual_seed(1)
        return layered(list(values[: len(inputs)]), theirs, BATCH)

    assert torch.autograd.gradcheck(term, (*inputs, *own), atol=1e-4)


@pytest.mark.parametrize("name", list(METHODS))
def test_extremes_give_finite_losses_and_gradients(name: str):
    """Examples that are all alike, features that are all zero, predictions that are certain, a batch of one."""
    if not takes_features(name):
        for student in (torch.zeros(B, K), 1000.0 * torch.eye(K)[LABELS], torch.zeros(1, K)):
            teachers = 500.0 * torch.eye(K)[LABELS[: len(student)]][None]
            student = student.clone().requires_grad_()
            loss = METHODS[name]()(student, teachers, LABELS[: len(student)], KDConfig(tau=1.0), None)
            loss.sum().backward()
            assert student.grad is not None
            assert loss.isfinite().all()
            assert student.grad.isfinite().all()
        return
    for value, rows in itertools.product((0.0, 1.0), (B, 1)):
        ours, theirs = ([torch.full_like(one[:rows], value).float() for one in side] for side in _features(name))
        method = _method(name, ours, theirs).float()
        inputs = [one.requires_grad_() for one in ours]
        batch = Batch(BATCH.images_BCHW[:rows], LABELS[:rows], BATCH.index_B[:rows], None)
        loss = method(inputs, theirs, batch)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert all(one.grad is not None and one.grad.isfinite().all() for one in inputs)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_teaches_digits(name: str, teacher_run: Path, tmp_path: Path):
    """From an ensemble, through the command's own path; what is saved is a plain student, and bf16 works."""
    options = {"channel_adapter": True} if name == "fsp" else {}
    run = ckd.distill(
        "resnet_8",
        teachers=[f"{teacher_run}@2", f"{teacher_run}@4"],
        method=name,
        epochs=2,
        batch_size=25,
        learning_rate=0.01,
        precision="bf16",
        out=tmp_path / "s",
        **options,
    )
    assert all(row["loss"] > 0 or name == "vid" for row in run.rows())
    network = build_network("resnet_8", num_classes=10, in_channels=1, mean=[0.3], std=[0.3])
    assert run.last.network().state_dict().keys() == network.state_dict().keys()
    assert run.run.method == name
    alpha, tau = defaults(name)
    assert (run.run.kd.alpha, run.run.kd.tau) == (alpha, tau)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_killed_run_continues_as_if_it_had_not_been(name: str, teacher_run: Path, tmp_path: Path):
    """A method's own layers, memories and draws are part of what resumes."""

    def stop(task: str, done: int, total: int) -> None:
        if task.endswith("/stopped") and done == 6:  # of 2 × 4 steps, in the second epoch
            raise KeyboardInterrupt

    def run(folder: str, **more: Any) -> ckd.Trajectory:
        return ckd.distill(
            "wrn_10_1",
            teachers=[str(teacher_run)],
            method=name,
            epochs=2,
            batch_size=25,
            precision="fp32",
            channel_adapter=name == "fsp",
            out=tmp_path / folder,
            **more,
        )

    with pytest.raises(KeyboardInterrupt):
        run("stopped", on_progress=stop)
    resumed, whole = run("stopped"), run("whole")
    assert resumed.last.sha256 == whole.last.sha256


@pytest.mark.parametrize("name", OF_LOGITS)
def test_the_exact_table_serves_methods_of_predictions(name: str, teacher_run: Path, tmp_path: Path):
    """The same student as from live teachers."""
    runs = [
        ckd.distill(
            "wrn_10_1",
            teachers=[f"{teacher_run}@2", f"{teacher_run}@4"],
            method=name,
            epochs=2,
            batch_size=25,
            precision="fp32",
            logit_cache_gb=limit,
            out=tmp_path / f"{limit}",
        )
        for limit in (0.0, 1.0)
    ]
    assert runs[0].last.sha256 == runs[1].last.sha256


@pytest.mark.parametrize("name", OF_FEATURES)
def test_several_teachers_give_the_mean_of_their_terms(name: str, teacher_run: Path):
    data = load_data(DataConfig(data="digits", train_images=60))
    batch = next(iter(data.train.batches(batch_size=20, seed=0, device="cpu").epoch(0)))
    student = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.3]).eval()

    def loss(epochs: list[int], weights: tuple[float, ...] | None = None, alpha: float = 0.0) -> Tensor:
        teacher = open_teacher([f"{teacher_run}@{epoch}" for epoch in epochs], device=torch.device("cpu"))
        distill_config = DistillConfig(method_weight=1.0, teacher_weights=weights)
        objective = distillation(
            name,
            teacher,
            KDConfig(alpha=alpha),
            distill_config,
            student=student,
            teachers=[(str(epoch), network) for epoch, network in zip(epochs, teacher.networks, strict=True)],
            images=data.train,
            seed=0,
        )
        for method in objective.methods[1:]:  # the same layers for all, so that only the teachers differ
            method.load_state_dict(objective.methods[0].state_dict())
        torch.manual_seed(0)
        return objective(student, batch, 0.0)[0].detach()

    labels_alone = loss([4], (1.0,), alpha=1.0) - loss([4], alpha=1.0)
    torch.testing.assert_close(labels_alone, torch.zeros(20), atol=1e-5, rtol=0)
    if name == "crd":
        return  # the negatives are drawn anew for each teacher
    singly = loss([2], alpha=1.0), loss([4], alpha=1.0)
    torch.testing.assert_close(loss([2, 4], alpha=1.0), (singly[0] + singly[1]) / 2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        loss([2, 4], (0.25, 0.75), alpha=1.0), 0.25 * singly[0] + 0.75 * singly[1], rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(loss([4], alpha=0.5), singly[1]), "α < 1 adds the teachers' predictions"


def test_stages_of_equal_size_meet(cifar100: Path):
    """WRN's are 32, 16 and 8 wide, MobileNetV2's 16, 8, 4 and 2."""
    data = load_data(DataConfig(data=f"cifar100:{cifar100}", train_images=200))
    teacher, student = (
        build_network(model, num_classes=100, in_channels=3, mean=[0.5] * 3, std=[0.5] * 3)
        for model in ("wrn_10_1", "mobilenetv2_0.75")
    )

    def pair(method: str, one: Network, other: Network) -> Any:
        asked: Any = None  # not until a batch comes
        made = distillation(
            method,
            asked,
            KDConfig(),
            DistillConfig(),
            student=one,
            teachers=[("t", other)],
            images=data.train,
            seed=0,
        )
        return made.pairs[0]

    assert pair("at", student, teacher) == FeaturePaths(student=("blocks.2", "blocks.5"), teacher=("stage2", "relu"))
    assert pair("fitnets", student, teacher) == FeaturePaths(student=("blocks.5",), teacher=("relu",))
    assert pair("crd", student, teacher) == FeaturePaths(student=("classifier:input",), teacher=("classifier:input",))


def test_methods_compute_in_full_precision_whatever_the_networks_do(teacher_run: Path):
    """Gram matrices and exponentials lose too much in bfloat16."""
    seen = []

    class Spy(nn.Module):
        alpha, weight, takes = 1.0, 1.0, "vector"

        def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
            seen.extend([student[0].dtype, teacher[0].dtype, (student[0].flatten(1) @ student[0].flatten(1).T).dtype])
            return student[0].mean((1, 2, 3))

    data = load_data(DataConfig(data="digits", train_images=60))
    batch = next(iter(data.train.batches(batch_size=20, seed=0, device="cpu").epoch(0)))
    student = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.3])
    teacher = open_teacher([str(teacher_run)], device=torch.device("cpu"))
    paths = [FeaturePaths(("classifier:input",), ("classifier:input",))]
    objective = FeatureDistillation([Spy()], teacher, KDConfig(), DistillConfig(), paths)
    with torch.autocast("cpu", torch.bfloat16):
        loss, logits = objective(student, batch, 0.0)
    assert logits.dtype == torch.bfloat16
    assert {*seen, loss.dtype} == {torch.float32}


class _Odd(nn.Module):
    """Modules that give what is no feature of an image each."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.windows, self.place, self.whole = nn.Identity(), nn.Identity(), nn.Identity()
        self.asleep, self.fixed = nn.Identity(), nn.Identity()
        self.net = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(8, num_classes)
        self.bias = nn.Parameter(torch.zeros(1, 8))

    def forward(self, images: Tensor) -> Tensor:
        self.windows(images.unfold(2, 4, 4).unfold(3, 4, 4).flatten(0, 0).repeat(4, 1, 1, 1, 1, 1)[:, 0, 0, 0][:, None])
        self.whole((images > 0.5).long())
        if not self.training:
            self.asleep(images)
        self.fixed(images)
        return self.classifier(self.net(images) + self.place(self.bias))


@pytest.mark.parametrize(
    ("feature", "sentence"),
    [
        ("windows", r"features of shape \(8, 1, 4, 4\), float32, are not one map or vector of each of 2 images"),
        ("place", r"features of shape \(1, 8\), float32, are not one map"),
        ("whole", r"int64, are not one map"),
        ("asleep", "nothing passes through the student's 'asleep' while it learns"),
        ("fixed", "the student's 'fixed' can't learn: it has no gradient"),
    ],
)
def test_what_is_no_feature_is_one_sentence(teacher_run: Path, tmp_path: Path, feature: str, sentence: str):
    with pytest.raises(UserError, match=sentence):
        ckd.distill(
            "tests.losses.test_methods:_Odd",
            teachers=[str(teacher_run)],
            method="sp",
            student_features=[feature],
            teacher_features=["stage1"],
            epochs=1,
            out=tmp_path / "s",
        )


def test_attention_needs_somewhere_to_look(teacher_run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="at compares where maps are active, and 'pool' has a single position"):
        ckd.distill(
            "wrn_10_1",
            teachers=[str(teacher_run)],
            method="at",
            student_features=["pool"],
            teacher_features=["pool"],
            epochs=1,
            out=tmp_path / "s",
        )


def test_a_network_without_maps_says_which_options_name_features(teacher_run: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "flat.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels): return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for method in ("sp", "fitnets"):
        with pytest.raises(UserError, match=r"of the student: the model has no convolutional map.*--student-features"):
            ckd.distill("flat:net", teachers=[str(teacher_run)], method=method, epochs=1, out=tmp_path / "s")


def test_an_adapter_takes_a_last_batch_of_one(teacher_run: Path, tmp_path: Path):
    """Vectors of 100 images in batches of 33: the last has one value a channel, which has no variance."""
    run = ckd.distill(
        "wrn_10_1",
        teachers=[str(teacher_run)],
        method="fitnets",
        student_features=["classifier:input"],
        teacher_features=["classifier:input"],
        epochs=1,
        batch_size=33,
        out=tmp_path / "s",
    )
    assert run.complete


def test_features_are_looked_for_where_the_network_is():
    """On another device than the images, which come from the processor's memory."""
    network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.3]).to("meta")
    assert stage_paths(network.body, torch.rand(2, 1, 8, 8)) == ["stage1", "stage2", "relu"]
    assert vector_path(network.body, torch.rand(2, 1, 8, 8)) == "classifier:input"
    assert last_map_path(network.body, torch.rand(2, 1, 8, 8)) == "pool:input"
