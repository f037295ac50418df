"""Install the rules of a host again and again, in the network namespace that it is started in; print the times.

Started by rules.py in a fresh namespace: never where rules matter.
"""

import json
import sys
import time
from typing import Final

from hostmesh_agent.capture import CaptureRequest, HostFloor, Scope, apply, clear, plan
from hostmesh_api.wire import VIP4, VIP6

ROUNDS: Final = 20
_REQUEST: Final = CaptureRequest(
    scope=Scope.MESH,
    inbound_ports=frozenset(range(8080, 8090)),
    mesh_prefixes=frozenset({str(VIP4), str(VIP6), "198.51.100.0/24"}),
    virtual_prefixes=frozenset({str(VIP4), str(VIP6)}),
)
_FLOOR: Final = HostFloor(envoy_uid=64_000, ssh_ports=frozenset({22}), controller=frozenset({("192.0.2.1", 15012)}))


def install() -> float:
    """Plan, install, read back and compare; return the seconds it took."""
    started_s = time.perf_counter()
    apply(plan(_REQUEST, _FLOOR))
    return time.perf_counter() - started_s


def main() -> int:
    taken_s = []
    for _ in range(ROUNDS):
        taken_s.append(install())
        clear()
    again_s = [install() for _ in range(ROUNDS)]
    clear()
    json.dump({"from_nothing_s": taken_s, "again_s": again_s}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
