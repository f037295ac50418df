"""What an outbound cluster is made from."""

from dataclasses import dataclass

from hostmesh_controller.mesh.records import Resolution, Service, ServicePort
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.names import OutboundName
from hostmesh_controller.xds.localities import Group, Spread
from hostmesh_controller.xds.policy import Policy


@dataclass(frozen=True, slots=True)
class Outbound:
    """A port of a service or subset, as one kind of caller reaches it.

    Attributes:
        name: which one.
        service: whose port it is.
        port: the port.
        policy: what the DestinationRules say of it.
        config: what holds for the whole mesh.
        identities: who may answer; sorted.
        trust_domain: of the mesh.
        http: False: bytes are passed, whatever the port speaks.
        caller: the directory of the calling host's certificate.
        callers: SPIFFE IDs under which programs of the host call that have one of their own.
        namespace: the calling host's, where its stored credentials are.
        spread: how requests are spread over localities.
        groups: the endpoints, where the cluster carries them itself (resolution DNS); else none.
        all_tls: whether every endpoint speaks mutual TLS; asked only where the caller dials them itself.
    """

    name: OutboundName
    service: Service
    port: ServicePort
    policy: Policy
    config: MeshConfigSpec
    identities: tuple[str, ...]
    trust_domain: str
    http: bool
    caller: str
    namespace: str
    spread: Spread | None = None
    groups: tuple[Group, ...] = ()
    all_tls: bool = False
    callers: tuple[str, ...] = ()

    @property
    def is_passthrough(self) -> bool:
        """Whether callers dial the endpoints themselves."""
        return self.service.resolution is Resolution.NONE or is_passthrough(self.policy)

    @property
    def is_http2(self) -> bool:
        """Whether HTTP/2 is spoken, because the port does, or because the policy upgrades to it."""
        if not self.http or self.uses_client_protocol:
            return False
        return self.port.protocol.is_http2 or self.is_upgraded

    @property
    def is_upgraded(self) -> bool:
        http = self.policy.connection_pool.http if self.policy.connection_pool else None
        wish = http.h2_upgrade_policy if http else None
        if not self.http or self.uses_client_protocol or wish == "DO_NOT_UPGRADE":
            return False
        # The mesh's setting is for ports that are known to speak HTTP; a rule's author knows the port.
        return wish == "UPGRADE" or (self.port.protocol.is_http and self.config.h2_upgrade_policy == "UPGRADE")

    @property
    def uses_client_protocol(self) -> bool:
        http = self.policy.connection_pool.http if self.policy.connection_pool else None
        return http is not None and http.use_client_protocol

    @property
    def verifies(self) -> bool:
        """Whether a certificate is looked at where the rule has TLS of its own."""
        client = self.policy.tls
        if client is None or client.insecure_skip_verify:
            return False
        # Without an authority that the rule names, the mesh says whether the system's are asked.
        named = bool(client.ca_certificates or client.credential_name)
        return named or self.config.verify_certificate_at_client

    @property
    def stat_name(self) -> str:
        """The name in statistics that the mesh's pattern gives, or "" for the cluster's own."""
        pattern = self.config.outbound_cluster_stat_name
        return stat_name(pattern, self.service, self.port, self.name.subset) if pattern else ""


def is_passthrough(policy: Policy) -> bool:
    """Tell whether a policy leaves the choice of the endpoint to the caller."""
    return policy.load_balancer is not None and policy.load_balancer.simple == "PASSTHROUGH"


def stat_name(pattern: str, service: Service, port: ServicePort, subset: str = "") -> str:
    """Return a name for statistics, by Istio's placeholders."""
    name = service.id.hostname.partition(".")[0]
    values = {
        "%SERVICE%": f"{name}.{service.id.namespace}" if service.short else service.id.hostname,
        "%SERVICE_NAME%": name if service.short else service.id.hostname,
        "%SERVICE_FQDN%": service.id.hostname,
        "%SUBSET_NAME%": subset,
        # As in Istio, which knows no target port on the calling side.
        "%TARGET_PORT%": "0",
        "%SERVICE_PORT%": str(port.number),
        "%SERVICE_PORT_NAME%": port.name,
    }
    for placeholder, value in values.items():
        pattern = pattern.replace(placeholder, value)
    return pattern
