"""Ray's notice that a node is to go, from a real control process."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.processes

SCRIPT = """
import time
import ray
from ray.core.generated import autoscaler_pb2
from launcher.drain import DrainWatch
context = ray.init("local", num_cpus=1, include_dashboard=False, object_store_memory=80 << 20, logging_level="ERROR")
@ray.remote(num_cpus=1)
class Rank:
    def there(self):
        return True
rank = Rank.remote()
ray.get(rank.there.remote())  # an idle node would leave at once
node = ray.get_runtime_context().get_node_id()
watch, others = DrainWatch([node]), DrainWatch(["0" * 56])
assert watch.look() == "", "nothing drains yet"
reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
client = ray._raylet.GcsClient(address=context.address_info["gcs_address"])
accepted, why = client.drain_node(node, reason, "spot", int(time.time() * 1000) + 60_000)
assert accepted, why
until, said = time.monotonic() + 20, ""
while not said and time.monotonic() < until:
    said = watch.look()
    time.sleep(0.1)
assert others.look() == "", "a node that is not ours"
print(said, flush=True)
"""


@pytest.mark.slow
def test_a_draining_node_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Ray drains node " in done.stdout
    assert ", gone in 5" in done.stdout or ", gone in 60 s" in done.stdout
