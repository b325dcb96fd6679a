"""Results of runs as a pandas table, and a figure of one's own.

python examples/results_to_pandas.py          # under a minute on two cores; needs pandas
"""

import matplotlib

matplotlib.use("Agg")
import checkpointkd as ckd

ckd.train("wrn_10_1", data="digits", train_images=200, epochs=8, out="runs/table/teacher")
for alpha in (0.1, 0.9):
    ckd.distill("wrn_10_1", teachers=["runs/table/teacher"], alpha=alpha, epochs=4, out=f"runs/table/alpha-{alpha}")
table = ckd.results("runs/table")
print(table.to_string())
axes = table.plot.bar(x="run", y="test_accuracy", legend=False)
axes.set_ylabel("test accuracy")
axes.figure.savefig("accuracy.png", bbox_inches="tight")
