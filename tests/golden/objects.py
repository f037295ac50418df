"""Configuration objects for tests, written in Python or in YAML."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hostmesh_api import wire
from hostmesh_controller.load import load_documents
from hostmesh_controller.mesh import HostRuntime, Mesh, Settings, build, virtual_hostnames
from hostmesh_controller.model.kinds import KINDS
from hostmesh_controller.model.objects import ApiObject, Metadata, ObjectKey

SETTINGS = Settings("cluster.local", "cluster.local", wire.VIP4, wire.VIP6)
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def obj(
    kind: str, name: str, spec: Mapping[str, Any] | None = None, namespace: str = "default", **more: Any
) -> ApiObject:
    """Return an object; `labels`, `annotations` and `age` (seconds after an epoch) may be given."""
    info = KINDS[kind]
    namespace = namespace if info.namespaced else ""
    created = _EPOCH + timedelta(seconds=more["age"]) if "age" in more else None
    metadata = Metadata(
        name, namespace, more.get("labels", {}), more.get("annotations", {}), creation_timestamp=created
    )
    return ApiObject(
        ObjectKey(kind, namespace, name), info.api_versions[0], metadata, info.spec_model.model_validate(spec or {})
    )


def read(path: Path) -> list[ApiObject]:
    """Read the objects of a file; they are as old as their place in the file says."""
    found, problems = load_documents(path.read_text(), path.name)
    assert not problems, "\n".join(map(str, problems))
    return [
        replace(item, metadata=replace(item.metadata, creation_timestamp=_EPOCH + timedelta(seconds=age)), origin=None)
        for age, item in enumerate(found)
    ]


def vips_of(objects: list[ApiObject], settings: Settings = SETTINGS) -> dict[str, int]:
    """Give every service a virtual address, in the order of their names."""
    names = sorted({name for item in objects for name in virtual_hostnames(item, settings.domain)})
    return {name: index for index, name in enumerate(names, start=1)}


def all_ready(objects: list[ApiObject], *, ipv6: bool = False) -> dict[str, HostRuntime]:
    """Say that every host joined, and that every workload is well and can be called with mutual TLS."""
    mesh = build(SETTINGS, objects, {}, {})
    placed = {host: frozenset(mesh.workloads_by_host.get(host, ())) for host in mesh.hosts}
    return {host: HostRuntime(True, here, ipv6, healthy=here) for host, here in placed.items()}


def mesh_of(objects: list[ApiObject], runtime: Mapping[str, HostRuntime] | None = None) -> Mesh:
    return build(SETTINGS, objects, vips_of(objects), all_ready(objects) if runtime is None else runtime)
