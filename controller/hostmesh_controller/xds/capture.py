"""What of a host's connections its agent has to capture."""

from collections.abc import Iterable, Sequence

from hostmesh_api.v1 import hostmesh_pb2 as pb
from hostmesh_controller.mesh.capture_policies import left_out, policy_of, policy_spec
from hostmesh_controller.mesh.inbound import captured_ports, strict_ports
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host, Service
from hostmesh_controller.mesh.sidecars import beyond, captures_all
from hostmesh_controller.model.capture_policy import (
    CapturePolicySpec,
    InboundCapture,
    InboundRule,
    OutboundCapture,
    OutboundRule,
)
from hostmesh_controller.names import host_matches, wildcards
from hostmesh_controller.xds.outbound import Plan, explicit_prefixes, plan
from hostmesh_controller.xds.sidecar_egress import captured_prefixes


def capture(mesh: Mesh, host: Host, planned: Plan) -> pb.Capture:
    virtual = [str(mesh.settings.vip4), str(mesh.settings.vip6)]
    explicit = explicit_prefixes(planned.explicit)
    own = [each for each in captured_prefixes(mesh, planned.viewer) if each not in explicit]
    made = pb.Capture(
        scope=pb.Capture.ALL if captures_all(mesh, host) else pb.Capture.MESH,
        inbound_ports=served_ports(mesh, host),
        outbound_prefixes=[*virtual, *explicit, *own],
        virtual_prefixes=virtual,
        dns=True,
    )
    policy = policy_of(mesh, host)
    if policy is not None:
        spec = policy_spec(policy)
        made.policy = f"{policy.key.namespace}/{policy.key.name}"
        made.transparent = spec.inbound.mode == "tproxy"
        made.inbound.CopyFrom(_direction(spec.inbound, may_open=True))
        made.outbound.CopyFrom(_direction(spec.outbound, may_open=planned.beyond.is_open))
        if made.outbound.open:
            made.open_prefixes.extend(_open_prefixes(mesh, planned))
    return made


def served_ports(mesh: Mesh, host: Host) -> tuple[int, ...]:
    """Return the numbers of a host's ports of which some connections are captured: those that a policy leaves.

    Ports that take mutual TLS alone always are.
    """
    ports = captured_ports(mesh, host.name)
    policy = policy_of(mesh, host)
    if policy is None:
        return ports
    out = left_out(policy_spec(policy).inbound, ports) - {*strict_ports(mesh, host.name)}
    return tuple(port for port in ports if port not in out)


def _direction(asked: InboundCapture | OutboundCapture, *, may_open: bool) -> pb.CaptureDirection:
    return pb.CaptureDirection(
        include=map(_rule, asked.include),
        exclude=map(_rule, asked.exclude),
        open=may_open and asked.failure_mode == "open",
    )


def _rule(rule: InboundRule) -> pb.CaptureRule:
    made = pb.CaptureRule(ports=rule.port_numbers, cidrs=rule.cidrs, interfaces=rule.interfaces)
    if isinstance(rule, OutboundRule):
        made.users.extend(rule.users)
        made.units.extend(rule.units)
    return made


def dependencies(mesh: Mesh, host: Host) -> tuple[str, ...]:
    """Return the names on whose rules it depends what may pass while there is no Envoy."""
    policy = policy_of(mesh, host)
    if policy is None or not _may_pass(mesh, host, policy_spec(policy)):
        return ()
    services = plan(mesh, mesh.viewer_of(host.name)).explicit
    names = [each.id.hostname for each in services if each.external]
    return tuple(dict.fromkeys(each for name in names for each in (name, *wildcards(name))))


def _may_pass(mesh: Mesh, host: Host, spec: CapturePolicySpec) -> bool:
    return spec.outbound.failure_mode == "open" and beyond(mesh, mesh.viewer_of(host.name)).is_open


def _open_prefixes(mesh: Mesh, planned: Plan) -> Sequence[str]:
    """Return the blocks of services outside of the mesh of which no rule says how they are called.

    Where one does, passing by Envoy may be another destination, or plaintext instead of TLS.
    """
    plain = [each for each in planned.explicit if each.external and not _has_rules(mesh, each)]
    kept = {*explicit_prefixes(each for each in planned.explicit if each not in plain)}
    return [each for each in explicit_prefixes(plain) if each not in kept | {*captured_prefixes(mesh, planned.viewer)}]


def _has_rules(mesh: Mesh, service: Service) -> bool:
    name = service.id.hostname
    addresses = [each.partition("/")[0] for each in service.addresses]

    def found() -> bool:
        return any(
            host_matches(pattern, each) if pattern.startswith("*") else pattern == each
            for pattern in _patterns(mesh)
            for each in (name, *addresses)
        )

    return mesh.memo.get(("has rules", service.id), (service, mesh.virtual_services, mesh.destination_rules), found)


def _patterns(mesh: Mesh) -> Iterable[str]:
    yield from mesh.virtual_services
    yield from mesh.destination_rules
