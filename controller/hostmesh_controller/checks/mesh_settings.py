"""Mesh-wide settings: what the controller alone can change, and what a host captures because of them."""

from collections.abc import Iterator

from hostmesh_controller.checks.finding import Finding
from hostmesh_controller.checks.world import World
from hostmesh_controller.model import Path
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.model.sidecar import SidecarSpec

_ALL = (
    "hosts for which this holds capture every outbound TCP connection, as `capture.scope: all` does: without that it "
    "could not be enforced. SSH, the controllers, resolvers and the host itself are still called directly"
)

_ALWAYS_THERE = frozenset({"", "/dev/stdout", "/dev/stderr"})
_MAY_BE_REFUSED = (
    "the Envoy of every host must be able to write to this file, as its own user: one that cannot refuses all "
    "listeners and goes on with those that it has. It grows without bounds; /dev/stdout is Envoy's log, which has some"
)


def check_mesh_config(spec: MeshConfigSpec, world: World) -> Iterator[Finding]:
    """Yield settings that the controller was started with otherwise, and what closing the mesh means for hosts."""
    for name, message in disagreements(spec, world.trust_domain, world.root_namespace):
        yield Finding(("spec", name), message, "fixed-setting", "error")
    if spec.outbound_traffic_policy.mode == "REGISTRY_ONLY":
        yield Finding(("spec", "outboundTrafficPolicy", "mode"), _ALL, "captures-all")
    if spec.access_log_file not in _ALWAYS_THERE:
        yield Finding(("spec", "accessLogFile"), _MAY_BE_REFUSED, "log-file")


def check_outbound_policy(spec: SidecarSpec) -> Iterator[Finding]:
    """Yield what it means for hosts that a Sidecar has a word on destinations that are not seen."""
    policy = spec.outbound_traffic_policy
    path: Path = ("spec", "outboundTrafficPolicy")
    if policy is not None and policy.mode == "REGISTRY_ONLY":
        yield Finding((*path, "mode"), _ALL, "captures-all")
    elif policy is not None and policy.egress_proxy is not None:
        yield Finding((*path, "egressProxy"), _ALL, "captures-all")


def disagreements(spec: MeshConfigSpec, trust_domain: str, root_namespace: str) -> list[tuple[str, str]]:
    """Return in what settings differ from what the controller was started with: the field's name, and why it cannot be.

    Args:
        spec: the settings.
        trust_domain: of the controller; "" where it is not known.
        root_namespace: of the controller.
    """
    fixed = (
        ("trustDomain", spec.trust_domain, "trust_domain", trust_domain),
        ("rootNamespace", spec.root_namespace, "root_namespace", root_namespace),
    )
    return [
        (field, f"{value!r} is not what controller.toml says ({key} = {own!r}); remove it, or change it there")
        for field, value, key, own in fixed
        if value is not None and own and value.removesuffix(".") != own
    ]
