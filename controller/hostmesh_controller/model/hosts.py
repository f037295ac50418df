"""Host: a machine of the mesh (hostmesh.io/v1)."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from hostmesh_controller.model.exports import EVERY
from hostmesh_controller.model.schema import IpAddress, Label, Spec, as_fault, check_label, check_subdomain


def check_outbound_identity(value: str) -> str:
    """Return `value` if it has one of the forms an outbound identity is written in.

    They are `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, `<namespace>/<name>`, and `<name>`, where
    the name is a workload's or a service account's.

    Raises:
        ValueError: it has none of them.
    """
    wanted = "write spiffe://<trust domain>/ns/<namespace>/sa/<service account>, <namespace>/<name> or <name>"
    if value.startswith("spiffe://"):
        parts = value.removeprefix("spiffe://").split("/")
        if len(parts) != 5 or parts[1] != "ns" or parts[3] != "sa":
            raise ValueError(f"{value!r} is not a workload's SPIFFE ID; {wanted}")
        check_subdomain(parts[0])
        namespace, name = parts[2], parts[4]
    else:
        namespace, slash, name = value.rpartition("/")
        if "/" in namespace or (slash and not namespace):
            raise ValueError(f"{value!r} is not an identity; {wanted}")
    if namespace:
        check_label(namespace)
    check_subdomain(name)
    return value


def _outbound_identity(value: str) -> str:
    with as_fault("outbound-identity"):
        return check_outbound_identity(value)


def _fingerprint(value: str) -> str:
    with as_fault("ssh-host-key"):
        if re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", value) is None:
            raise ValueError(f"{value!r} is no fingerprint; write SHA256:… as `ssh-keygen -lf KEY.pub` shows it")
    return value


class HostCapture(Spec):
    """What leaves through Envoy: `mesh`, only what goes to destinations known to the mesh; `all`, every connection."""

    scope: Literal["mesh", "all"] = "mesh"


def _namespace_or_all(value: str) -> str:
    with as_fault("namespace"):
        if value != EVERY:
            check_label(value)
    return value


class HostSpec(Spec):
    """A machine: its addresses tell which workloads are on it.

    `namespace` is where short names resolve (None: that of its workloads if all are in one, else "default").
    `outbound_identity` is the identity under which its programs call others; with `per_workload_identity` those that
    the host's owner says belong to a workload (agent.toml) call under the workload's, and all others, without
    `outbound_identity`, under the host's own. `locality` is `region/zone/subzone`
    ("": that of its workloads if they share one). `workload_namespaces` are those whose editors may place workloads on
    it ("*": all); administrators may place any. `ssh_host_keys` are fingerprints of the SSH host keys by which it may
    join.
    """

    addresses: Annotated[tuple[IpAddress, ...], Field(max_length=64)] = ()
    namespace: Label | None = None
    outbound_identity: Annotated[str, AfterValidator(_outbound_identity)] | None = None
    per_workload_identity: bool = False
    capture: HostCapture = HostCapture()
    locality: Annotated[str, Field(max_length=2048)] = ""
    workload_namespaces: Annotated[
        tuple[Annotated[str, AfterValidator(_namespace_or_all)], ...], Field(max_length=1024)
    ] = ()
    ssh_host_keys: Annotated[tuple[Annotated[str, AfterValidator(_fingerprint)], ...], Field(max_length=16)] = ()
