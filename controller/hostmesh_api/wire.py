"""Numbers and names that the controller and the agent must agree on.

Envoy's resources refer to these ports and paths, and the agent's rules and files realise them: a change here is a
change of protocol between the two.
"""

from ipaddress import IPv4Network, IPv6Network
from typing import Final

ADS_SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"
ADS_METHOD: Final = "DeltaAggregatedResources"
"""Spoken on both hops, Envoy to agent and agent to controller."""

CIPHERS_VARIABLE: Final = "GRPC_SSL_CIPHER_SUITES"
NO_CIPHERS_BEFORE_TLS_1_3: Final = "ECDHE-PSK-AES128-CBC-SHA"
"""What gRPC reads from that variable when it starts: ciphers of TLS 1.2, for it has no setting for the version.

This one needs a key that both know beforehand. There is none, so a handshake of TLS 1.2 never ends well; the ciphers of
TLS 1.3 are not chosen by it.
"""

OUTBOUND_PORT: Final = 15001
"""Envoy's listener for captured outbound TCP (Istio's number)."""
INBOUND_PORT: Final = 15006
"""Envoy's listener for captured inbound TCP (Istio's number)."""
DNS_PORT: Final = 15053
"""Envoy's UDP DNS listener on the loopback address."""
SECOND_OUTBOUND_PORT: Final = 15101
"""The same three of the Envoy that takes turns with the first one, so that one can replace the other."""
SECOND_INBOUND_PORT: Final = 15106
SECOND_DNS_PORT: Final = 15153
DOOR_PORT: Final = 15107
"""Where that second Envoy is reached for the ports that Envoy itself listens on, as those of gateways."""
ENVOYS_TCP_PORTS: Final = frozenset({OUTBOUND_PORT, INBOUND_PORT, SECOND_OUTBOUND_PORT, SECOND_INBOUND_PORT, DOOR_PORT})
ENVOYS_PORTS: Final = ENVOYS_TCP_PORTS | {DNS_PORT, SECOND_DNS_PORT}
DNS_TCP_PORT: Final = 15055
"""Where the agent takes questions over TCP, on the loopback address: Envoy's DNS listener is of UDP alone."""
AGENTS_PORT: Final = 15012
"""Controller: gRPC with mutual TLS, for agents that have joined."""
JOIN_PORT: Final = 15013
"""Controller: gRPC with server TLS, for hosts that join."""
ADMIN_PORT: Final = 15014
"""Controller: HTTPS admin API, metrics and health."""

DNS_ADDRESS: Final = "127.240.240.53"
"""Loopback address that the host's resolver asks first; its UDP port 53 is redirected to `DNS_PORT`."""
SPLIT_DNS_ADDRESS: Final = "127.240.240.54"
"""The same, for who asks nobody else about the mesh's domain: systemd-resolved."""
INBOUND_SOURCE_V4: Final = "127.0.0.6"
"""Source of Envoy's connections to the local program: tells them from Envoy's calls to the host's own services."""
INBOUND_SOURCE_V6: Final = "::6"
CLIENT_MARK: Final = 1506
"""What Envoy's connections to a program bear when they come from the client's address: their mark. And the number of
their zone in connection tracking, and of the routing table that brings what the program answers back to Envoy."""
OUTBOUND_V6: Final = "fd00:f0f1:0:1::1"
"""Loopback address at which Envoy gets what programs call over IPv6. Not ::1: firewalld refuses packets to ::/96 that
seem to leave (RFC 3964), and on the output hook a redirected packet still has the interface it would have left by."""

ADDRESS_STAYS: Final = "address.not-followed"
"""Alarm of an agent whose host is not at its address any more, and does not get its new one."""

ENVOY_SLICES: Final = ("hostmesh.slice", "hostmesh-envoy.slice")
"""Cgroup v2 in which every Envoy of a host runs: what systemd makes of `Slice=hostmesh-envoy.slice`."""

VIP4: Final = IPv4Network("240.240.0.0/16")
VIP6: Final = IPv6Network("fd00:f0f0::/112")
"""Ranges of the virtual addresses that services get; index i is the i-th address of either."""

HOST_CONFIG_NAME: Final = "self"
HOST_CONFIG_TYPE: Final = "type.googleapis.com/hostmesh.v1.HostConfig"
COLD_TYPE: Final = "type.googleapis.com/hostmesh.v1.ColdPage"
"""Pages of the cold copy, see `hostmesh_api.cold`."""
CONFIRMATION_TYPE: Final = "type.googleapis.com/hostmesh.v1.Confirmation"
CONFIRMATION_NAME: Final = "self"
"""What an agent asks for that holds a sudden loss of configuration back: that an operator wants it."""
HELD_BACK: Final = "held back: "
"""How the refusal of such a loss begins. It is no fault of one resource: there is none to be found by sending each."""
LISTENER_TYPE: Final = "type.googleapis.com/envoy.config.listener.v3.Listener"
CLUSTER_TYPE: Final = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINT_TYPE: Final = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
ROUTE_TYPE: Final = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
VIRTUAL_HOST_TYPE: Final = "type.googleapis.com/envoy.config.route.v3.VirtualHost"
AGENT_METADATA: Final = ("agent", "boot_id", "machine")
"""What an agent says of itself when it opens its stream, in the metadata of its node; see HostReport."""
ORIGIN_METADATA: Final = "origin"
"""What it says of the state of the controller's store that it has heard of last, see `hostmesh_api.origin`."""
EXTENSION_TYPE: Final = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
SECRET_TYPE: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - a type

ROOTS: Final = "certs/roots"
SYSTEM_ROOTS: Final = "system/roots.pem"
"""The roots that the host's operating system trusts: a link that the agent makes in Envoy's working directory."""
SVID_SECRET: Final = "workload"  # noqa: S105 - the name of a secret, not a secret
ROOTS_SECRET: Final = "roots"  # noqa: S105 - the name of a secret, not a secret
WASM_PULL_POLICY: Final = "ISTIO_META_WASM_IMAGE_PULL_POLICY"
"""Variable of a plugin's machine that is for the agent: `IfNotPresent` or `Always`. It takes out all such variables."""
RELAY_CLUSTER: Final = "hostmesh-relay"
"""Envoy's static cluster for the agent's ADS socket."""

MAX_INTERFACE_BYTES: Final = 15
"""Of the name of a network interface: the kernel's IFNAMSIZ, without the zero at its end."""
