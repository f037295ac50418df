"""What the agent of a simulated proxy reports: as long as a real one, another load each time."""

from bench import mesh
from hostmesh_api.v1.hostmesh_pb2 import (
    CaptureState,
    EnvoyState,
    HostFacts,
    HostLoad,
    HostReport,
    ListeningSocket,
    WorkloadLease,
)

_SOCKETS = 20


def report(host: str, load: float) -> bytes:
    """Return the report of a host whose one workload is ready."""
    facts = HostFacts(
        hostname=host,
        os="Debian GNU/Linux 12 (bookworm)",
        kernel="6.1.0-28-amd64",
        machine="x86_64",
        cpus=4,
        memory_bytes=8 << 30,
        addresses=["10.64.0.1", "fd00::10:64:0:1"],
        agent_version="1.0.0",
        envoy_version="1.40.0",
        boot_id="9a4d1f2c-7f0e-4a53-9d2e-0c5b8e1a7f3d",
    )
    lease = WorkloadLease(namespace=mesh.NAMESPACE, name=host, ready=True, captured_ports=[mesh.PORT])
    made = HostReport(
        facts=facts,
        load=HostLoad(load_1m=load % 4, cpu_percent=load % 100, memory_available_bytes=int(load * 1e6)),
        listening=[
            ListeningSocket(
                address="0.0.0.0", port=8000 + each, protocol="tcp", pid=900 + each, program=f"program-{each}"
            )
            for each in range(_SOCKETS)
        ],
        envoy=EnvoyState(state="live", version="1.40.0", pid=800),
        capture=CaptureState(state="on", backend="nftables", rules_hash="5f0c7b1e9a3d4f62"),
        leases=[lease],
    )
    return made.SerializeToString()
