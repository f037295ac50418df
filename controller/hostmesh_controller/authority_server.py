"""The controller's own certificate: made in memory at start, renewed by itself, given to gRPC at each handshake."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import grpc
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from hostmesh_api.identity import ControllerIdentity
from hostmesh_controller.authority import LEAF_LIFE, Authority, AuthorityError
from hostmesh_controller.authority_roots import Roots

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerKeyPair:
    """PEM; `chain_pem` is leaf first, `bundle_pem` the roots of clients. `roots` are those that it was made under."""

    key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    bundle_pem: bytes = field(repr=False)
    renew_at: datetime
    not_after: datetime
    roots: Roots = field(repr=False)


class ServerCertificate:
    """The certificate under which the controller listens. Thread-safe: gRPC asks from its own threads.

    Its key never touches the disk: a controller that starts again makes a new one.
    """

    def __init__(
        self,
        authority: Authority,
        addresses: Sequence[str],
        now: Callable[[], datetime],
        life: timedelta = LEAF_LIFE,
    ) -> None:
        """`addresses` are the DNS names and IP addresses under which the controller is called."""
        self._authority = authority
        self._addresses = tuple(dict.fromkeys(addresses))
        self._now = now
        self._life = life
        self._lock = threading.Lock()
        self._current = self._make(now())

    def current(self) -> ServerKeyPair:
        """Return the certificate to present now; a new one after half of the old one's life, and for other roots."""
        with self._lock:
            now = self._now()
            if now >= self._current.renew_at or self._authority.roots is not self._current.roots:
                try:
                    self._current = self._make(now)
                except AuthorityError as error:
                    _log.error("server_certificate_not_renewed", error=str(error))
            return self._current

    def credentials(self, *, client_certificates: bool) -> grpc.ServerCredentials:
        """Return credentials for one gRPC port that follow every renewal.

        gRPC gives tickets to resume sessions with, and has no setting to leave them out: who resumes one is refused by
        `peers`.

        Args:
            client_certificates: require one of the mesh (the agents' port), or ask for none (the join port).
        """
        given = self.current()

        def fetch() -> Any:
            # None (unknown to the stubs) for no change. With a change gRPC frees what it had, which handshakes in other
            # threads may be about to use: one change for each handshake crashed the process in a storm of them.
            nonlocal given
            found = self.current()
            if found is given:
                return None
            given = found
            return _configuration(found, client_certificates)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(given, client_certificates), fetch, client_certificates
        )

    def _make(self, now: datetime) -> ServerKeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        identity = ControllerIdentity(self._authority.trust_domain)
        # Before the certificate: what changes in between is taken up at the next look.
        roots, bundle_pem = self._authority.roots, self._authority.client_roots_pem
        issued = self._authority.issue(
            key.public_key(), identity, now, self._life, addresses=self._addresses, for_latecomers=True
        )
        return ServerKeyPair(
            key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            chain_pem=issued.chain_pem,
            bundle_pem=bundle_pem,
            renew_at=now + (issued.not_after - now) / 2,
            not_after=issued.not_after,
            roots=roots,
        )


def _configuration(pair: ServerKeyPair, client_certificates: bool) -> grpc.ServerCertificateConfiguration:
    roots = pair.bundle_pem if client_certificates else None
    return grpc.ssl_server_certificate_configuration([(pair.key_pem, pair.chain_pem)], roots)
