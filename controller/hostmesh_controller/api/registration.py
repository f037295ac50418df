"""The objects that a registration stands for. Pure.

What is named is set, and all else of an object that is there stays: an operator may have written more of it since.
"""

from collections.abc import Callable, Mapping
from typing import Any

from hostmesh_controller.api.bodies import RegisterRequest
from hostmesh_controller.model import ApiObject, ObjectKey

Document = dict[str, Any]


def registration(request: RegisterRequest, known: Callable[[ObjectKey], ApiObject | None]) -> list[Document]:
    """Return a Host, and a WorkloadEntry if something of one is named.

    Raises:
        ValueError: the host is new, and has no address.
    """
    key = ObjectKey("Host", "", request.host)
    host = _document(known(key), "hostmesh.io/v1", key)
    if request.addresses:
        host["spec"]["addresses"] = request.addresses
    elif not host["spec"].get("addresses"):
        raise ValueError(f"host {request.host!r} is new: name the addresses under which other hosts reach it")
    if request.host_labels:
        host["metadata"] = {**host["metadata"], "labels": {**host["metadata"].get("labels", {}), **request.host_labels}}
    if request.ssh_host_keys:
        host["spec"]["sshHostKeys"] = request.ssh_host_keys
    if not _has_workload(request):
        # Without a workload nothing else tells where its short names resolve.
        if request.namespace is not None:
            host["spec"]["namespace"] = request.namespace
        return [host]
    return [host, _workload(request, known, host["spec"]["addresses"][0])]


def _has_workload(request: RegisterRequest) -> bool:
    return bool(request.ports or request.labels or request.workload or request.service_account)


def _workload(request: RegisterRequest, known: Callable[[ObjectKey], ApiObject | None], address: str) -> Document:
    key = ObjectKey("WorkloadEntry", request.namespace or "default", request.workload or request.host)
    there = known(key)
    entry = _document(there, "networking.istio.io/v1", key)
    named = {
        "address": address if request.addresses or there is None else None,
        "ports": {each.name: each.number for each in request.ports},
        "labels": request.labels,
        "serviceAccount": request.service_account or ("default" if there is None else None),
    }
    entry["spec"] |= {name: value for name, value in named.items() if value}
    return entry


def _document(there: ApiObject | None, version: str, key: ObjectKey) -> Document:
    if there is not None:
        found: Mapping[str, Any] = there.to_dict()
        return {**found, "spec": {**found.get("spec", {})}}
    metadata = {"name": key.name, "namespace": key.namespace} if key.namespace else {"name": key.name}
    return {"apiVersion": version, "kind": key.kind, "metadata": metadata, "spec": {}}
