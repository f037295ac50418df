"""The mesh of the benchmarks: many hosts, a service that all of them call and one that a few call."""

from collections.abc import Iterator
from typing import Any, Final

from hostmesh_api.wire import CLUSTER_TYPE, ENDPOINT_TYPE, HOST_CONFIG_NAME, HOST_CONFIG_TYPE, LISTENER_TYPE

NAMESPACE: Final = "bench"
PORT: Final = 8080
SHARED: Final = "shared"
RARE: Final = "rare"
CALLERS_OF_RARE: Final = 20

Document = dict[str, Any]


def host_name(index: int) -> str:
    return f"host-{index:04}"


def _address(index: int) -> str:
    return f"10.64.{index // 250}.{index % 250 + 1}"


def cluster(service: str) -> str:
    """Return the name of the cluster that calls a service."""
    return f"outbound|{PORT}||{service}.{NAMESPACE}.svc.cluster.local"


def asked_by(index: int) -> dict[str, tuple[str, ...]]:
    """Return what the proxy of a host asks for: its own things, and the services it calls."""
    clusters = (cluster(SHARED), cluster(RARE)) if index < CALLERS_OF_RARE else (cluster(SHARED),)
    return {
        HOST_CONFIG_TYPE: (HOST_CONFIG_NAME,),
        CLUSTER_TYPE: ("*", *clusters),
        ENDPOINT_TYPE: clusters,
        LISTENER_TYPE: ("*",),
    }


def _object(api_version: str, kind: str, name: str, spec: Document, namespace: str | None = NAMESPACE) -> Document:
    metadata = {"name": name} if namespace is None else {"name": name, "namespace": namespace}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}


def service(name: str) -> Document:
    ports = [{"name": "http", "port": PORT}]
    return _object("v1", "Service", name, {"ports": ports, "selector": {"app": name}})


def endpoint(service_name: str, change: int) -> Document:
    """Return the one endpoint of a service; its address depends on `change`."""
    spec = {"address": f"198.51.100.{change % 250 + 1}", "labels": {"app": service_name}, "ports": {"http": PORT}}
    return _object("networking.istio.io/v1", "WorkloadEntry", f"{service_name}-0", spec)


def services() -> Iterator[Document]:
    yield _object("v1", "Namespace", NAMESPACE, {}, None)
    for name in (SHARED, RARE):
        yield service(name)
        yield endpoint(name, 0)
    yield service("fleet")


def hosts(count: int) -> Iterator[Document]:
    """Yield each host with the one workload that runs there."""
    for index in range(count):
        yield _object("hostmesh.io/v1", "Host", host_name(index), {"addresses": [_address(index)]}, None)
        spec = {"address": _address(index), "labels": {"app": "fleet"}, "ports": {"http": PORT}}
        yield _object("networking.istio.io/v1", "WorkloadEntry", host_name(index), spec)
