"""The whole story in one screen: train a teacher, score its checkpoints, choose one, distill from it, compare.

python examples/quickstart.py          # about one minute on two cores; scikit-learn's digits, no download
"""

import checkpointkd as ckd

RUNS = "runs/quickstart"

# A teacher with a checkpoint every four epochs.
teacher = ckd.train("wrn_16_2", data="digits", train_images=200, epochs=40, save_every=4, out=f"{RUNS}/teacher")

# Each checkpoint on the information plane (§4.2), and Algorithm 1's choice (§5).
ckd.score(teacher.path, decoder_steps=200)
choice = ckd.select(teacher.path)
print(f"Algorithm 1 chooses epoch {choice.epoch}: {choice.reason}")

# The same student without a teacher, with one teacher (Eq. 1), and with a Snapshot Ensemble of two (Eq. 2).
no_teacher = ckd.train("wrn_10_1", data="digits", train_images=200, epochs=25, out=f"{RUNS}/no-teacher")
print(f"{'no teacher':15} {no_teacher.test_accuracy:.1%}")
for teachers in (["last"], ["best"], ["midpoint", "last"]):
    name = "-".join(teachers)
    refs = [f"{teacher.path}@{ref}" for ref in teachers]
    student = ckd.distill("wrn_10_1", teachers=refs, epochs=25, out=f"{RUNS}/{name}")
    print(f"{name:15} {student.test_accuracy:.1%}")  # one seed: `checkpointkd demo` runs three

print("report:", ckd.report(RUNS))
