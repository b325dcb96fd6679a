"""Several teachers: which checkpoints they are, how much and when each counts, what they know, what they cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import checkpointkd as ckd
from checkpointkd.checkpoints import resolve_ensemble
from checkpointkd.config import DistillConfig, KDConfig, scheduled_teacher
from checkpointkd.data import DataConfig, load_data
from checkpointkd.errors import UserError
from checkpointkd.losses import METHODS, LogitDistillation, distillation, kd, soft_targets
from checkpointkd.models import build_network
from checkpointkd.teachers.cached_batches import CachedTeacherBatches, with_cached_logits
from checkpointkd.teachers.cost import training_cost
from checkpointkd.teachers.ensemble import Teacher, open_teacher

CPU = torch.device("cpu")
SHORT = {"epochs": 2, "batch_size": 25, "precision": "fp32"}


@pytest.fixture
def second_run(teacher_run: Path, tmp_path: Path) -> Path:
    path = tmp_path / "second"
    ckd.train(
        "wrn_10_1", data="digits", train_images=100, epochs=2, batch_size=10, learning_rate=0.03, seed=1, out=path
    )
    return path


@pytest.mark.parametrize(
    ("ensemble", "epochs"),
    [("snapshot:1", [4]), ("snapshot:2", [2, 4]), ("snapshot:4", [1, 2, 3, 4]), ("all", [1, 2, 3, 4]), ("full:1", [4])],
)
def test_words_for_ensembles_of_one_run(teacher_run: Path, ensemble: str, epochs: list[int]):
    """§3.1: a Snapshot Ensemble is the end and k − 1 equally spaced checkpoints before it."""
    assert [member.checkpoint.epoch for member in resolve_ensemble([str(teacher_run)], ensemble)] == epochs


def test_words_for_ensembles_of_two_runs(teacher_run: Path, second_run: Path):
    runs = [str(teacher_run), str(second_run)]
    for ensemble, epochs in (("full:2", [4, 2]), ("mixed", [2, 2])):
        found = resolve_ensemble(runs, ensemble)
        assert [member.checkpoint.epoch for member in found] == epochs
        assert [str(member.checkpoint.path).startswith(run) for member, run in zip(found, runs, strict=True)] == [
            True
        ] * 2


@pytest.mark.parametrize(
    ("ensemble", "sentence"),
    [
        ("snapshot:5", r"snapshot:5 needs 5 checkpoints, and .* has 4 \(epochs 1, 2, 3, 4\)"),
        ("snapshot:0", r"Unknown ensemble 'snapshot:0'\. Write snapshot:K, where K is at least 1"),
        ("snapshot:two", "Write snapshot:K"),
        ("snapshot", "Write snapshot:K"),
        ("all:3", "an ensemble 'all' is written all, not 'all:3'"),
        ("full:2", "--ensemble full:2 takes 2 runs, not 1"),
        ("mixed", "takes 2 runs, not 1"),
        ("snapshots:2", "unknown ensemble 'snapshots:2'; did you mean 'snapshot:K'"),
    ],
)
def test_ensembles_that_cannot_be_had(teacher_run: Path, ensemble: str, sentence: str):
    with pytest.raises(UserError, match=sentence):
        resolve_ensemble([str(teacher_run)], ensemble)


def test_an_ensemble_picks_the_checkpoints_itself(teacher_run: Path):
    with pytest.raises(UserError, match=r"name runs, without @, not '.*@2'"):
        resolve_ensemble([f"{teacher_run}@2"], "snapshot:2")


def test_checkpoints_that_are_not_equally_spaced_are_no_snapshot_ensemble(teacher_run: Path):
    for epoch in (1, 2):
        (teacher_run / "checkpoints" / f"epoch-{epoch:04d}.safetensors").unlink()
    assert [m.checkpoint.epoch for m in resolve_ensemble([str(teacher_run)], "snapshot:2")] == [3, 4]
    shutil.copy(teacher_run / "run.json", teacher_run / "run.json.copy")
    (teacher_run / "checkpoints" / "epoch-0003.safetensors").unlink()
    with pytest.raises(UserError, match="snapshot:2 needs 2 checkpoints"):
        resolve_ensemble([str(teacher_run)], "snapshot:2")


def test_the_nearest_checkpoint_must_not_stand_for_two(tmp_path: Path):
    run = tmp_path / "run"
    ckd.train("wrn_10_1", data="digits", train_images=50, epochs=9, save_every=3, batch_size=25, out=run)
    (run / "checkpoints" / "epoch-0003.safetensors").rename(run / "checkpoints" / "epoch-0008.safetensors")
    with pytest.raises(UserError, match=r"no 3 equally spaced checkpoints: .* 9 epochs are 6, 6, 9\. Name checkpoints"):
        resolve_ensemble([str(run)], "snapshot:3")


def test_weights_are_how_much_each_counts():
    student, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    teachers = torch.randn(2, 5, 4)
    p = (teachers / 3).softmax(-1)
    torch.testing.assert_close(soft_targets(teachers, tau=3, weights=(0.25, 0.75)), 0.25 * p[0] + 0.75 * p[1])
    z = 0.25 * teachers[0] + 0.75 * teachers[1]
    torch.testing.assert_close(
        soft_targets(teachers, tau=3, average="logits", weights=(0.25, 0.75)), (z / 3).softmax(-1)
    )
    even = DistillConfig(teacher_weights=(0.5, 0.5))
    assert even.weights_at(0.3, 2) == (0.5, 0.5)
    torch.testing.assert_close(
        soft_targets(teachers, tau=3, weights=even.teacher_weights), soft_targets(teachers, tau=3), rtol=1e-5, atol=1e-7
    )
    assert kd(student, teachers, labels, KDConfig()).shape == (5,)


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_an_objective_heeds_the_weights(teacher_run: Path, name: str):
    data = load_data(DataConfig(data="digits", train_images=60))
    batch = next(iter(data.train.batches(batch_size=20, seed=0, device="cpu").epoch(0)))
    student = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.3]).eval()

    def loss(epochs: list[int], *weights: float) -> torch.Tensor:
        teacher = open_teacher([f"{teacher_run}@{epoch}" for epoch in epochs], device=CPU)
        distill_config = DistillConfig(teacher_weights=weights or None)
        return LogitDistillation(METHODS[name](), teacher, KDConfig(), distill_config)(student, batch, 0.5)[0].detach()

    torch.testing.assert_close(loss([2, 4], 0.0, 1.0), loss([4]))
    torch.testing.assert_close(loss([2, 4], 0.5, 0.5), loss([2, 4]))
    torch.testing.assert_close(loss([2, 4], 0.25, 0.75), loss([2, 4, 4, 4]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(loss([2, 4], 0.25, 0.75), loss([2, 4]))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"teacher_weights": (0.5, 0.6)}, r"lie in \[0, 1\] and sum to 1, unlike 0\.5 0\.6"),
        ({"teacher_weights": (1.5, -0.5)}, r"unlike 1\.5 -0\.5"),
        ({"teacher_weights": (float("nan"), 1.0)}, "unlike nan 1"),
        (
            {"teacher_weights": (0.5, 0.5), "teacher_schedule": "rco"},
            "--teacher-weights cannot be combined with --teacher-schedule",
        ),
        ({"method_weight": -1.0}, "at least 0, not -1"),
        ({"method_weight": float("inf")}, "at least 0, not inf"),
        ({"teacher_schedule": "rko"}, "Unknown teacher.schedule 'rko'. Did you mean 'rco'"),
        ({"teacher_batch_norm": "train"}, "Unknown teacher batch norm 'train'"),
        ({"student_features": ()}, "--teacher-features and --student-features need"),
    ],
)
def test_teaching_that_cannot_be_is_one_sentence(settings: dict, sentence: str):
    with pytest.raises(UserError, match=sentence):
        DistillConfig(**settings)


def test_as_many_weights_as_teachers(teacher_run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--teacher-weights has 3 values for 2 checkpoints"):
        ckd.distill(
            "wrn_10_1",
            teachers=[str(teacher_run)],
            ensemble="snapshot:2",
            teacher_weights=[0.2, 0.3, 0.5],
            out=tmp_path / "s",
        )
    assert not (tmp_path / "s").exists()


def test_on_a_route_each_teacher_has_its_part_of_the_training():
    rco, progressive = DistillConfig(teacher_schedule="rco"), DistillConfig(teacher_schedule="progressive")
    for settings in (rco, progressive):
        assert [settings.weights_at(p, 3).index(1.0) for p in (0, 0.3, 0.34, 0.66, 0.67, 0.99)] == [0, 0, 1, 1, 2, 2]
    assert rco.tau_at(0.9, 5.0) == 5.0
    assert [progressive.tau_at(p, 5.0) for p in (0.0, 0.5, 1.0)] == [5.0, 3.0, 1.0]


@pytest.mark.parametrize(
    ("epochs", "teachers"), [(4, 2), (3, 2), (2, 5), (7, 3), (10, 10), (20, 7), (44, 22), (90, 45)]
)
def test_the_teachers_of_an_epoch_are_those_that_its_steps_use(epochs: int, teachers: int):
    config, steps = DistillConfig(teacher_schedule="rco"), 79
    for epoch in range(epochs):
        used = set()
        for step in range(steps):
            weights = config.weights_at((epoch + step / steps) / epochs, teachers)
            assert weights is not None
            used.add(weights.index(1.0))
            assert weights.index(1.0) == (epoch * steps + step) * teachers // (epochs * steps)
        active = config.active_teachers(epoch, epochs, teachers)
        assert used <= set(active)
        assert len(active) <= len(used) + 1


def test_the_first_step_of_an_epoch_uses_the_first_teacher_of_the_epoch():
    """Up to 200 epochs and 100 teachers. A float quotient names another teacher in one epoch of about 3,600."""
    disagreements = sum(
        scheduled_teacher(epoch / epochs, teachers) != epoch * teachers // epochs
        for epochs in range(1, 201)
        for teachers in range(1, 101)
        for epoch in range(epochs)
    )
    assert disagreements == 0
    config = DistillConfig(teacher_schedule="progressive")
    assert all(
        config.active_teachers(epoch, epochs, 22)[0] == scheduled_teacher(epoch / epochs, 22)
        for epochs in range(1, 201)
        for epoch in range(epochs)
    )


def test_a_table_asks_nobody_else(teacher_run: Path):
    data = load_data(DataConfig(data="digits", train_images=60))
    teacher = open_teacher([f"{teacher_run}@2", f"{teacher_run}@4"], device=CPU)
    batches = data.train.batches(batch_size=30, seed=0, device="cpu")
    found = with_cached_logits(
        batches,
        data.train,
        teacher,
        precision="fp32",
        limit=10**9,
        on_progress=lambda *_: None,
        active_teachers=lambda epoch: [epoch],
    )
    assert isinstance(found, CachedTeacherBatches)
    for epoch in (0, 1):
        for batch in found.epoch(epoch):
            assert batch.teacher_TBK is not None
            assert batch.teacher_TBK[1 - epoch].abs().sum() == 0
            torch.testing.assert_close(batch.teacher_TBK[epoch], teacher.logits(batch)[epoch])


@pytest.mark.parametrize("teacher_schedule", ["rco", "progressive"])
def test_a_route_ends_with_another_student_and_the_table_changes_nothing(
    teacher_run: Path, tmp_path: Path, teacher_schedule: str
):
    def run(name: str, **options) -> str:
        found = ckd.distill(
            "wrn_10_1", teachers=[str(teacher_run)], ensemble="snapshot:2", out=tmp_path / name, **SHORT, **options
        )
        return found.last.sha256

    live, kept = (
        run("live", teacher_schedule=teacher_schedule, logit_cache_gb=0.0),
        run("kept", teacher_schedule=teacher_schedule),
    )
    assert live == kept != run("joint")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"teacher_schedule": "rco"}, "--teacher-schedule rco needs several teachers, and one is given"),
        (
            {"teacher_schedule": "rco", "ensemble": "all", "average": "logits"},
            "--average is for teachers that teach jointly",
        ),
        ({"method": "at", "channel_adapter": True}, "--channel-adapter does not apply to at, only to fsp"),
        ({"method": "at", "tau": 3.0}, "--tau has no effect on at at alpha 1"),
        ({"logit_cache_gb": float("inf")}, "--logit-cache-gb must be from 0 to 10⁹, not inf"),
    ],
)
def test_options_that_would_do_nothing_are_refused(teacher_run: Path, tmp_path: Path, options: dict, sentence: str):
    with pytest.raises(UserError, match=sentence):
        ckd.distill("wrn_10_1", teachers=[str(teacher_run)], out=tmp_path / "s", **SHORT, **options)


def test_batch_statistics_are_each_batchs_own_and_leave_the_teacher_as_it_was(teacher_run: Path):
    data = load_data(DataConfig(data="digits", train_images=60))
    batch = next(iter(data.train.batches(batch_size=20, seed=0, device="cpu").epoch(0)))
    learned, by_batch = (
        Teacher(resolve_ensemble([str(teacher_run)]), device=CPU, batch_norm=mode) for mode in ("eval", "batch")
    )
    network = ckd.open_trajectory(teacher_run).last.network()
    before = {name: tensor.clone() for name, tensor in by_batch.networks[0].state_dict().items()}
    got = by_batch.logits(batch)[0]
    assert not any(module.training for module in by_batch.networks[0].modules())
    after = by_batch.networks[0].state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if "num_batches" not in name)
    with torch.no_grad():
        expected = network.train()(batch.images_BCHW)
    torch.testing.assert_close(got, expected.half().float())
    assert not torch.allclose(got, learned.logits(batch)[0], atol=0.1)
    assert by_batch.measure(data.val) == learned.measure(data.val), "a checkpoint's own accuracy"


def test_teachers_that_normalize_by_batch_are_asked_at_every_step(teacher_run: Path, tmp_path: Path, caplog):
    caplog.set_level("INFO")
    runs = {
        mode: ckd.distill(
            "wrn_10_1", teachers=[str(teacher_run)], teacher_batch_norm=mode, out=tmp_path / mode, **SHORT
        )
        for mode in ("eval", "batch")
    }
    assert "with batch statistics, logits depend on the other images" in caplog.text
    assert runs["batch"].run.distill_config.teacher_batch_norm == "batch"
    assert runs["eval"].last.sha256 != runs["batch"].last.sha256


def test_a_teacher_without_batch_norm_has_no_batch_statistics(tmp_path: Path, monkeypatch):
    (tmp_path / "plain.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),"
        " nn.Linear(16, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    ckd.train("plain:net", data="digits", epochs=5, out=tmp_path / "t")
    with pytest.raises(UserError, match="has no batch norm, so it can't normalize with a batch's statistics"):
        ckd.distill("wrn_10_1", teachers=[str(tmp_path / "t")], teacher_batch_norm="batch", out=tmp_path / "s")


def test_an_ensemble_is_measured_as_a_whole(teacher_run: Path):
    """Disagreement is the share of images that two members name differently; calibration is given of all."""
    found = ckd.evaluate(str(teacher_run), ensemble="snapshot:2")
    data = load_data(DataConfig(data="digits", train_images=100))
    z = open_teacher([f"{teacher_run}@2", f"{teacher_run}@4"], device=CPU).predict(data.val)
    named = z.argmax(-1)
    assert found["ensemble"]["disagreement"] == pytest.approx((named[0] != named[1]).double().mean().item())
    p = z.double().softmax(-1).mean(0)
    right = p.argmax(-1) == data.val.labels_N
    assert found["ensemble"]["accuracy"] == pytest.approx(right.double().mean().item())
    order = p.max(-1).values.argsort(stable=True)
    gaps = torch.tensor_split((p.max(-1).values - right.double())[order], 15)
    expected = sum(abs(gap.sum().item()) for gap in gaps) / len(right)
    assert found["ensemble"]["calibration_error"] == pytest.approx(expected, abs=1e-6)
    one = ckd.evaluate(f"{teacher_run}@4")
    assert one["ensemble"]["disagreement"] is None
    assert one["members"][0] == found["members"][1]
    weighted = open_teacher([f"{teacher_run}@2", f"{teacher_run}@4"]).measure(data.val, weights=[0.0, 1.0])
    for name in ("accuracy", "nll", "calibration_error"):
        assert weighted["ensemble"][name] == pytest.approx(one["members"][0][name], abs=1e-6)


def test_what_teachers_cost_to_train(teacher_run: Path, second_run: Path, tmp_path: Path):
    """Fig. 3: a run counts up to its last teaching checkpoint, once."""
    rows = [row.seconds for row in ckd.open_trajectory(teacher_run).rows()]
    other = [row.seconds for row in ckd.open_trajectory(second_run).rows()]
    for addresses, runs, epochs, seconds in (
        ([f"{teacher_run}@2"], 1, 2, sum(rows[:2])),
        ([f"{teacher_run}@2", f"{teacher_run}@1"], 1, 2, sum(rows[:2])),
        ([f"{teacher_run}@4", f"{second_run}@2"], 2, 6, sum(rows) + sum(other)),
    ):
        cost = training_cost(resolve_ensemble(addresses))
        assert (cost.runs, cost.epochs) == (runs, epochs)
        assert cost.seconds == pytest.approx(seconds, abs=2e-3)
    student = ckd.distill("wrn_10_1", teachers=[f"{teacher_run}@2"], out=tmp_path / "s", **SHORT)
    assert student.run.teachers_cost.epochs == 2
    assert ckd.evaluate(f"{teacher_run}@2")["training_cost"]["epochs"] == 2


def _rewrite(run: Path, change) -> None:
    stored = json.loads((run / "run.json").read_text())
    change(stored)
    (run / "run.json").write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda run: run["classes"].reverse(),
            r"they know different classes \(in another order, first at 0: '0' and '9'\)",
        ),
        (
            lambda run: run["classes"].__setitem__(3, "three"),
            r"they know different classes \(10 and 10, '3', 'three' not in both\)",
        ),
        (
            lambda run: run["data"].__setitem__("shape", [1, 16, 16]),
            "their images differ in size, 1 × 8 × 8 and 1 × 16 × 16",
        ),
    ],
)
def test_teachers_that_cannot_teach_together(teacher_run: Path, second_run: Path, tmp_path: Path, change, sentence):
    _rewrite(second_run, change)
    with pytest.raises(UserError, match=rf"cannot teach together: {sentence}"):
        ckd.distill("wrn_10_1", teachers=[str(teacher_run), str(second_run)], out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"method": "fitnets", "teacher_features": ["stage9"]},
            r"of the teacher .*: The model has no module 'stage9'. Did you mean 'stage3'.*Its modules: conv1, stage1",
        ),
        (
            {"method": "fitnets", "student_features": ["stage1", "stage2"]},
            r"has 2 \(stage1, stage2\) and the teacher .* has 3 \(stage1, stage2, relu\)\. Name equally many",
        ),
        (
            {"method": "crd", "student_features": ["stage1", "stage2"], "teacher_features": ["stage1", "stage2"]},
            r"crd contrasts 1 feature, not 2 \(stage1, stage2\)",
        ),
        (
            {"method": "fsp", "student_features": ["stage1"], "teacher_features": ["stage1"]},
            r"fsp .* needs at least 2 features, not 1 \(stage1\)\. Name more",
        ),
        (
            {"method": "fsp"},
            r"student's 'stage1' has 16 and the teacher's 'stage1' has 32\. Add --channel-adapter to train",
        ),
        ({"method": "kd", "teacher_features": ["stage1"]}, "--teacher-features does not apply to kd"),
        ({"method": "dkd", "channel_adapter": True}, "--channel-adapter does not apply to dkd, only to fsp"),
        ({"method": "hints"}, r"Unknown method 'hints'.*Known: kd, lskd, dkd"),
        ({"method": "at", "compile": True}, "--compile hides the features that at learns from"),
        ({"best_of_last_ten": True}, "but --select-on val allows one measurement"),
    ],
)
def test_methods_say_what_they_cannot_match(tmp_path_factory, options: dict, sentence: str, wide_run: Path):
    out = tmp_path_factory.mktemp("out") / "s"
    with pytest.raises(UserError, match=sentence):
        ckd.distill("wrn_10_1", teachers=[str(wide_run)], out=out, **options)
    assert not out.exists()


@pytest.fixture(scope="session")
def wide_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide") / "teacher"
    ckd.train("wrn_10_2", data="digits", train_images=100, epochs=4, batch_size=10, learning_rate=0.03, out=path)
    return path


def test_features_of_any_module_by_path(wide_run: Path, tmp_path: Path):
    """Other channels, other sizes, other networks."""
    run = ckd.distill(
        "resnet_8",
        teachers=[str(wide_run)],
        method="vid",
        teacher_features=["stage1.0", "stage3"],
        student_features=["stage2", "stage3.0"],
        out=tmp_path / "s",
        **SHORT,
    )
    assert run.run.distill_config.teacher_features == ("stage1.0", "stage3")
    assert run.complete


def test_the_best_of_the_last_ten_is_told_beside_the_last(tmp_path: Path):
    """The authors' choice, on the test images, which the paper's protocol selects on anyway."""
    run = ckd.train(
        "wrn_10_1",
        data="digits",
        select_on="test",
        train_images=60,
        epochs=12,
        batch_size=30,
        best_of_last_ten=True,
        out=tmp_path / "r",
    )
    tested = {row.epoch: row.test_accuracy for row in run.rows() if row.test_accuracy is not None}
    assert list(tested) == list(range(3, 13))
    result = run.result()
    assert result is not None
    assert result.best_of_last_ten is not None
    assert result.test is not None
    assert result.best_of_last_ten.accuracy == max(tested.values())
    assert tested[result.best_of_last_ten.epoch] == max(tested.values())
    assert result.test.accuracy == tested[12]


def test_another_method_weight_is_another_run(teacher_run: Path, tmp_path: Path):
    options = {"teachers": [str(teacher_run)], "out": tmp_path / "s", **SHORT}
    ckd.distill("wrn_10_1", **options)
    with pytest.raises(UserError, match=r"another run \(distill_config method_weight None there, 0.3 here"):
        ckd.distill("wrn_10_1", method_weight=0.3, **options)


def test_a_method_warms_up_as_its_paper_says(teacher_run: Path):
    """DKD's term grows from nothing over the first twelfth."""
    data = load_data(DataConfig(data="digits", train_images=60))
    batch = next(iter(data.train.batches(batch_size=20, seed=0, device="cpu").epoch(0)))
    teacher = open_teacher([str(teacher_run)], device=CPU)
    student = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.3], std=[0.3]).eval()
    objective = distillation(
        "dkd",
        teacher,
        KDConfig(alpha=1.0, tau=4.0),
        DistillConfig(),
        student=student,
        teachers=[("t", teacher.networks[0])],
        images=data.train,
        seed=0,
    )
    hard, half, whole, later = (objective(student, batch, p)[0].detach() for p in (0.0, 1 / 24, 1 / 12, 0.5))
    torch.testing.assert_close(half - hard, (whole - hard) / 2)
    torch.testing.assert_close(whole, later)
    plain = LogitDistillation(METHODS["kd"](), teacher, KDConfig(alpha=1.0))(student, batch, 0.0)[0]
    torch.testing.assert_close(hard, plain.detach())
