"""What a Sidecar says of a workload's inbound connections."""

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Workload
from hostmesh_controller.model.connection_pool import ConnectionPool
from hostmesh_controller.model.sidecar import IngressListener, SidecarSpec


def inbound_sidecar(mesh: Mesh, workload: Workload) -> SidecarSpec | None:
    """Return the Sidecar that has a word on a workload's inbound connections, or None."""
    key = mesh.inbound_sidecars.get(workload.key)
    if key is None:
        return None
    spec = mesh.objects[key].spec
    assert isinstance(spec, SidecarSpec)
    return spec


def ingress_of(mesh: Mesh, workload: Workload) -> dict[int, IngressListener] | None:
    """Return the ingress listeners of a workload by port; None: its services say on which ports it is called."""
    spec = inbound_sidecar(mesh, workload)
    return {each.port.number: each for each in spec.ingress} if spec is not None and spec.ingress else None


def is_bound(listener: IngressListener) -> bool:
    """Tell whether Envoy itself listens on the port, and nothing is captured."""
    return listener.capture_mode == "NONE"


def pool_of(mesh: Mesh, workload: Workload, port: int) -> ConnectionPool | None:
    """Return the bounds of connections to a workload's own port: the listener's, else the Sidecar's, else None."""
    spec = inbound_sidecar(mesh, workload)
    if spec is None:
        return None
    own = next((each.connection_pool for each in spec.ingress if each.port.number == port), None)
    return own or spec.inbound_connection_pool


def serves_mesh_tls(mesh: Mesh, workload: Workload, port: int) -> bool:
    """Tell whether the workload's agent has vouched that mutual TLS is spoken on a port of it."""
    runtime = mesh.runtime_of(workload.host) if workload.host is not None else None
    if runtime is None:
        return False
    listeners = ingress_of(mesh, workload)
    if listeners is None:
        return runtime.serves(workload.key, port)
    listener = listeners.get(port)
    if listener is not None and is_bound(listener):
        return runtime.joined and workload.key in runtime.ready
    return listener is not None and runtime.serves(workload.key, port)
