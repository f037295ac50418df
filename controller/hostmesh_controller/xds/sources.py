"""Where Envoy gets what it asks for: the ADS stream, or certificate files that the agent keeps."""

from typing import Final

from envoy.config.core.v3.address_pb2 import Address, CidrRange, SocketAddress
from envoy.config.core.v3.base_pb2 import WatchedDirectory
from envoy.config.core.v3.config_source_pb2 import AggregatedConfigSource, ApiVersion, ConfigSource, PathConfigSource
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import SdsSecretConfig
from google.protobuf.wrappers_pb2 import UInt32Value

from hostmesh_controller.mesh.gateways import credential_name
from hostmesh_controller.xds.encoding import duration

FIRST_SECRET_TIMEOUT_S: Final = 2.0
"""How long what needs a stored credential waits for it at first."""


def ads(initial_fetch_timeout_s: float | None = None) -> ConfigSource:
    """Return the source for "ask on the stream"; None leaves Envoy's 15 s for the first answer."""
    return ConfigSource(
        ads=AggregatedConfigSource(),
        resource_api_version=ApiVersion.V3,
        initial_fetch_timeout=None if initial_fetch_timeout_s is None else duration(initial_fetch_timeout_s),
    )


def secret(name: str, directory: str) -> SdsSecretConfig:
    """Return a reference to a secret in the agent's files; the path is relative to Envoy's working directory."""
    return SdsSecretConfig(
        name=name,
        sds_config=ConfigSource(
            path_config_source=PathConfigSource(
                path=f"{directory}/sds.json", watched_directory=WatchedDirectory(path=directory)
            ),
            resource_api_version=ApiVersion.V3,
        ),
    )


def ads_secret(name: str) -> SdsSecretConfig:
    """Return a reference to a secret that comes over the stream, by its whole name.

    What needs it waits no longer than a moment: one that does not exist fails its own connections and nothing else.
    """
    return SdsSecretConfig(name=name, sds_config=ads(FIRST_SECRET_TIMEOUT_S))


def stored_secret(credential: str, namespace: str) -> SdsSecretConfig:
    """Return a reference to a stored credential, as a host of a namespace names it (see `gateways.credential_name`)."""
    return ads_secret(credential_name(credential, namespace))


def socket(address: str, port: int) -> Address:
    return Address(socket_address=SocketAddress(address=address, port_value=port))


def cidr(prefix: str) -> CidrRange:
    """Return a canonical prefix, or a single address, as Envoy writes it."""
    address, _, length = prefix.partition("/")
    bits = int(length) if length else 128 if ":" in address else 32
    return CidrRange(address_prefix=address, prefix_len=UInt32Value(value=bits))
