"""The whole story in one screen: train a teacher, score its checkpoints, choose one, distill from it, compare.

python examples/quickstart.py          # about half a minute on two cores; real digits, no download
"""

import checkpointkd as ckd

# A teacher, and the checkpoints that its training leaves behind.
teacher = ckd.train(
    "wrn_16_2", data="digits", train_images=200, epochs=40, save_every=4, seed=0, out="runs/quickstart/teacher"
)

# Each checkpoint on the information plane (§4.2), and the one that Algorithm 1 picks (§5).
ckd.score(teacher.path, decoder_steps=200)
choice = ckd.select(teacher.path)
print(f"Algorithm 1 picks epoch {choice.epoch}: {choice.reason}")

# The same student from nobody, from single checkpoints (Eq. 1), and from a Snapshot Ensemble of two (Eq. 2).
students = {
    "no teacher": ckd.train("wrn_10_1", data="digits", train_images=200, epochs=25, out="runs/quickstart/no-teacher"),
    "full": ckd.distill("wrn_10_1", teachers=[f"{teacher.path}@last"], epochs=25, out="runs/quickstart/full"),
    "chosen": ckd.distill("wrn_10_1", teachers=[f"{teacher.path}@best"], epochs=25, out="runs/quickstart/chosen"),
    "half + full": ckd.distill(
        "wrn_10_1",
        teachers=[f"{teacher.path}@midpoint", f"{teacher.path}@last"],
        epochs=25,
        out="runs/quickstart/snapshots",
    ),
}
for name, student in students.items():
    print(f"{name:12} {student.test_accuracy:.1%}")  # one seed: `checkpointkd demo` runs five
print("report:", ckd.report("runs/quickstart"))
