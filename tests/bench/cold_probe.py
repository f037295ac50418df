"""The agent's part of the cold copy in a process of its own: what it costs to take one, keep it and answer from it.

It is given a directory with responses as they came over the wire, and prints its figures as one line of JSON.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median

import psutil
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse

import hostmesh_agent.relay  # what the agent has loaded anyway
from hostmesh_agent.cold import Cold
from hostmesh_agent.cold_copy import ColdCopy
from hostmesh_api.delta import ClientStream
from hostmesh_api.wire import CLUSTER_TYPE, ENDPOINT_TYPE, VIRTUAL_HOST_TYPE

ROUNDS = 200


def main(directory: Path) -> None:
    assert hostmesh_agent.relay
    process = psutil.Process()
    responses = sorted(directory.glob("*.response"))
    before = process.memory_info().rss
    copy = ColdCopy(directory / "cache", 64_000_000)
    began_s = time.process_time()
    for path in responses:
        update = ClientStream.update(DeltaDiscoveryResponse.FromString(path.read_bytes()))
        copy.write(update.resources, update.removed)
    cpu_s = time.process_time() - began_s
    cold = Cold(copy, lambda: "host")
    times_s: list[float] = []
    for number in range(ROUNDS):
        name = f"reviews-{number * 7}"
        cluster = f"outbound|9080||{name}.default.svc.cluster.local"
        began_s = time.perf_counter()
        asked = ((VIRTUAL_HOST_TYPE, f"9080/{name}"), (CLUSTER_TYPE, cluster), (ENDPOINT_TYPE, cluster))
        assert all(cold.answer(*each) is not None for each in asked), name
        times_s.append(time.perf_counter() - began_s)
    rss = process.memory_info().rss - before
    copy.close()
    disk = sum(each.stat().st_size for each in (directory / "cache").iterdir())
    print(json.dumps({"rss_bytes": rss, "disk_bytes": disk, "cpu_s": cpu_s, "answer_s": median(times_s)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
