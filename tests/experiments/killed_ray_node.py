"""Run a command on a Ray cluster of two nodes on 127.0.0.1, one of which is killed while a run is half trained.

`python killed_ray_node.py OUT COMMAND …`
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

LOOPBACK = "127.0.0.2"  # Ray takes 127.0.0.1 for the address of the network card


def half_trained(out: Path) -> bool:
    """Return whether a run has saved two epochs and is not complete."""
    return any(
        metrics.read_bytes().count(b"\n") >= 2 and not (metrics.parent / "result.json").exists()
        for metrics in out.glob("runs/*/metrics.jsonl")
    )


def main() -> int:
    out, words = Path(sys.argv[1]), sys.argv[2:]
    head = {"num_cpus": 0, "include_dashboard": False, "node_ip_address": LOOPBACK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.add_node(num_cpus=1, node_ip_address=LOOPBACK)
    process = subprocess.Popen(
        [sys.executable, "-m", "checkpointkd", *words], env={**os.environ, "RAY_ADDRESS": cluster.address}
    )
    deadline = time.monotonic() + 300
    while not half_trained(out):
        assert process.poll() is None
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.01)
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1, node_ip_address=LOOPBACK)
    print("killed a node", flush=True)
    code = process.wait(400)
    cluster.shutdown()
    return code


if __name__ == "__main__":
    sys.exit(main())
