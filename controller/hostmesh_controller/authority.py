"""The certificate authority: who signs, whom hosts trust, and how one root takes another's place.

    root ─▶ intermediate (renewed at half-life) ─▶ leaves (72 h)

Peers trust the roots of the bundle; the intermediate travels with each leaf, so that it can change without telling
anybody. A leaf says what the caller decided, never what a CSR asked for: it is made from a public key and an identity.
The key of a root is our own, or somebody else's (`Upstream`), who signs our intermediates.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Self

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hostmesh_api.identity import ControllerIdentity, HostIdentity, WorkloadIdentity, require_subdomain
from hostmesh_controller import authority_files as files
from hostmesh_controller import authority_held as holding
from hostmesh_controller import authority_roots as steps
from hostmesh_controller.authority_certificates import (
    Issuer,
    cross_signed,
    fingerprint,
    leaf_terms,
    new_intermediate,
    new_leaf,
    new_root,
    pem,
)
from hostmesh_controller.authority_files import AuthorityError
from hostmesh_controller.authority_held import Held, anchor, bundle, new_record
from hostmesh_controller.authority_roots import Root, Roots, Source, StepError
from hostmesh_controller.authority_upstream import Obtained, Upstream

__all__ = ["Authority", "AuthorityError", "Issued", "StepError"]

LEAF_LIFE: Final = timedelta(hours=72)
RETRY: Final = timedelta(minutes=1)
"""How soon an upstream that did not sign is asked again; its intermediate has half of its life left."""

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Issued:
    """A signed certificate.

    Attributes:
        chain_pem: leaf first, then what leads to the root; PEM.
        serial: of the leaf; 32 lower-case hexadecimal digits.
        not_before: aware, UTC.
        not_after: aware, UTC.
    """

    chain_pem: bytes = field(repr=False)
    serial: str
    not_before: datetime
    not_after: datetime


class Authority:
    """The roots and intermediates of one trust domain. Thread-safe."""

    def __init__(self, held: Held, directory: Path, upstream: Upstream | None) -> None:
        self._held = held
        self._directory = directory
        self._upstream = upstream
        self._changing = threading.Lock()
        self._problem = ""
        self._asked_at: datetime | None = None

    @classmethod
    def load_or_create(
        cls, state_dir: Path, trust_domain: str, now: datetime, upstream: Upstream | None = None
    ) -> Self:
        """Return the authority kept in `state_dir`/ca, made there if there is none.

        What a crash left half-made is finished or dropped. What cannot be finished without giving every host a new root
        is refused.

        Args:
            state_dir: the controller's state directory; made if missing.
            trust_domain: what the authority signs for; an existing one must be of the same.
            now: aware.
            upstream: who signs our intermediates; None: a root of our own does.

        Raises:
            AuthorityError: files are missing, foreign, readable by others, or do not belong together; says the cure.
            ValueError: `trust_domain` is not a DNS name.
        """
        require_subdomain("trust domain", trust_domain)
        directory = state_dir / "ca"
        with files.lock(directory):
            held = holding.load(directory, trust_domain, now)
            if held is None:
                held = holding.create(directory, trust_domain, now, upstream)
            holding.write_bundle(directory, held.roots)
            files.guarded(lambda: holding.tidy(directory, held.roots))
        return cls(held, directory, upstream)

    @property
    def trust_domain(self) -> str:
        return self._held.roots.trust_domain

    @property
    def roots(self) -> Roots:
        """The roots and their states; another object after each change."""
        return self._held.roots

    @property
    def root_der(self) -> bytes:
        """The root that signs: what a host that joins pins."""
        return anchor(self._held.roots.active).public_bytes(Encoding.DER)

    @property
    def bundle_pem(self) -> bytes:
        """Every root that a peer must trust; PEM."""
        return bundle(self._held.roots)

    @property
    def client_roots_pem(self) -> bytes:
        """The roots by which the controller lets hosts in: those of the bundle, and those that were retired.

        A retired root signs no more, and a host is let in only with a certificate that is on record as issued to it.
        So a host that slept until its root was gone can still come and get a new certificate.
        """
        retired = (each.certificate_pem.encode() for each in self._held.roots.retired)
        return b"".join([self.bundle_pem, *retired])

    @property
    def signing_until(self) -> datetime:
        """When the intermediate that signs now ends."""
        held = self._held
        return held.signing[held.roots.active.id].not_after

    @property
    def problem(self) -> str:
        """Why there is no newer intermediate, although there should be one; "" while all is well."""
        return self._problem

    def intermediate(self, root_id: str) -> x509.Certificate | None:
        """Return the certificate that signs leaves below a root; None if there is none."""
        found = self._held.signing.get(root_id)
        return None if found is None else found.certificate

    def crossed(self, root_id: str) -> bool:
        """Tell whether the root before has vouched for this one."""
        return root_id in self._held.cross

    def issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        identity: WorkloadIdentity | HostIdentity | ControllerIdentity,
        now: datetime,
        ttl: timedelta = LEAF_LIFE,
        *,
        addresses: Sequence[str] = (),
        enrolment: str = "",
        for_latecomers: bool = False,
    ) -> Issued:
        """Sign a leaf for `identity`.

        Args:
            public_key: the owner's; its holder must have been proven before (csr.py).
            identity: becomes the one URI among the subject alternative names.
            now: aware.
            ttl: life from now; cut at the intermediate's own end.
            addresses: DNS names and IP addresses; only for the controller, for only its certificate may answer to
                an address.
            enrolment: under which it is issued, becomes the subject's common name; "" for none.
            for_latecomers: the chain leads to retired roots too, for those who know no other yet.

        Raises:
            ValueError: another trust domain, addresses for somebody else than the controller, or no life.
            AuthorityError: the intermediate has ended and there is no new one.
        """
        if identity.trust_domain != self.trust_domain:
            msg = f"{identity.uri} is outside of the trust domain {self.trust_domain}"
            raise ValueError(msg)
        if addresses and not isinstance(identity, ControllerIdentity):
            msg = f"only the controller's certificate has addresses, not that of {identity.uri}"
            raise ValueError(msg)
        if ttl <= timedelta():
            msg = f"a certificate's life must be positive, not {ttl}"
            raise ValueError(msg)
        held = self._current(now)
        issuer = held.signing[held.roots.active.id]
        leaf = new_leaf(issuer, public_key, leaf_terms(identity.uri, addresses, now, ttl, issuer.not_after, enrolment))
        lineage = holding.lineage(held, now, retired=for_latecomers)
        return Issued(
            pem([leaf, *issuer.chain, *lineage]),
            f"{leaf.serial_number:032x}",
            leaf.not_valid_before_utc,
            leaf.not_valid_after_utc,
        )

    # Steps: each is decided by authority_roots, and made by the rename of roots.json.

    def prepare(self, now: datetime) -> Root:
        """Have a new root trusted, which is to sign later; blocking.

        Raises:
            StepError: there is one already, or the upstream's root is still the same.
            AuthorityError: disk or upstream refuse; nothing was changed.
        """
        upstream = self._upstream
        if upstream is not None:
            self._refuse_second(self.roots)
            # Over a network, perhaps: nobody waits for that.
            obtained = upstream.obtain(self.trust_domain, now)
            known = self.roots.by_fingerprint(fingerprint(obtained.root))
            if known is not None and known.trusted:
                msg = (
                    f"the root of the upstream authority is {known.id} still, which is {known.state}: "
                    "have it use a new one first"
                )
                raise StepError(msg)
            with self._changing, files.lock(self._directory):
                return self._prepare_obtained(obtained, upstream.source, now)
        with self._changing, files.lock(self._directory):
            own = new_root(self.trust_domain, now)
            root = new_record(own.certificate, Source.SELF_SIGNED, now)
            roots = steps.prepare(self._held.roots, root)
            intermediate = new_intermediate(own, self.trust_domain, now)
            files.write_issuer(self._directory, f"root{root.file}", own)
            return self._add(roots, root, intermediate, now, own)

    @staticmethod
    def _refuse_second(roots: Roots) -> None:
        if roots.prepared is not None:
            steps.prepare(roots, roots.prepared)

    def activate(self, now: datetime) -> Root:
        """Let the prepared root sign from now on; see `authority_roots.activate`."""
        self._step(lambda roots: steps.activate(roots, now))
        return self.roots.active

    def taint(self, root_id: str | None, now: datetime, within: timedelta) -> Root:
        """Have the certificates of an old root renewed; see `authority_roots.taint`."""
        return self._step(lambda roots: steps.taint(roots, root_id, now, within))

    def revoke(self, root_id: str | None, now: datetime, *, compromised: bool) -> Root:
        """Take a root from the bundles and forget its key; see `authority_roots.revoke`."""
        return self._step(lambda roots: steps.revoke(roots, root_id, now, compromised=compromised))

    def would(self, step: Callable[[Roots], Roots]) -> Root:
        """Return the root that a step would change; nothing is changed.

        Raises:
            StepError: it cannot be taken.
        """
        return _changed(self.roots, step(self.roots))

    def tend(self, now: datetime, *, at_once: bool = False) -> None:
        """Renew the intermediate if it is time, and take what the upstream has anew; blocking. Never raises.

        What goes wrong is in `problem`: the old intermediate signs until its end. An upstream over a network that did
        not sign is asked again after a while, or `at_once`.
        """
        try:
            self._refuse_foreign(now)
            self._current(now)
            upstream = self._upstream
            if upstream is not None and self._is_due(upstream, now):
                if self._rests(upstream, now) and not at_once:
                    return
                self._asked_at = now
                self._take(upstream.obtain(self.trust_domain, now), upstream.source, now)
        except (AuthorityError, StepError) as error:
            self._troubled(str(error))
        except Exception as error:
            # Whatever it was, it is looked at again: a loop that ends ends the mesh's certificates.
            _log.exception("authority_not_tended")
            self._troubled(f"a mistake of the controller ({type(error).__name__}): see its log")
        else:
            self._troubled("")

    def _rests(self, upstream: Upstream, now: datetime) -> bool:
        asked = self._asked_at
        recently = asked is not None and timedelta() <= now - asked < RETRY
        return bool(self._problem) and recently and upstream.source is not Source.FILES

    def _refuse_foreign(self, now: datetime) -> None:
        """Say that nobody renews what signs: the configuration names another provider than the one it came from."""
        active = self.roots.active
        provider = Source.SELF_SIGNED if self._upstream is None else self._upstream.source
        own = active.source is Source.SELF_SIGNED
        if active.source is not provider and not own and now >= self._held.signing[active.id].renew_at:
            msg = (
                f"root {active.id} signs, whose intermediate came from the provider {active.source}, and the "
                f"configuration says {provider}: prepare and activate a root of that (hostmesh ca prepare)"
            )
            raise AuthorityError(msg)

    def _is_due(self, upstream: Upstream, now: datetime) -> bool:
        held = self._held
        ours = [each for each in held.roots.trusted if each.source is upstream.source]
        newest = max(ours, key=lambda each: each.prepared_at, default=None)
        if newest is None or upstream.source is Source.FILES:
            return upstream.news() or newest is None
        return now >= held.signing[newest.id].renew_at

    def _take(self, obtained: Obtained, source: Source, now: datetime) -> None:
        """Sign with the upstream's intermediate from now on; below a new root once that is activated."""
        with self._changing, files.lock(self._directory):
            held = self._held
            known = held.roots.by_fingerprint(fingerprint(obtained.root))
            if known is None:
                if held.roots.prepared is not None:
                    waiting = held.roots.prepared.id
                    msg = f"the upstream authority has another root, and root {waiting} waits to be activated"
                    raise StepError(msg)
                root = self._prepare_obtained(obtained, source, now)
                _log.warning("root_prepared", root=root.id, source=root.source, next="hostmesh ca activate")
                return
            if not known.trusted:
                msg = f"the upstream authority's root {known.id} was revoked in this mesh: have it use another"
                raise StepError(msg)
            if held.signing[known.id].chain != obtained.issuer.chain:
                files.write_issuer(self._directory, f"intermediate{known.file}", obtained.issuer)
            roots = held.roots
            if obtained.trusted_pem != known.certificate_pem:
                roots = steps.trusting(roots, known.fingerprint, obtained.trusted_pem)
                files.write_roots(self._directory, roots)
                holding.write_bundle(self._directory, roots)
            self._held = replace(held, roots=roots, signing={**held.signing, known.id: obtained.issuer})
            until = obtained.issuer.not_after.isoformat()
            _log.info("intermediate_taken", root=known.id, source=known.source, not_after=until)

    def _prepare_obtained(self, obtained: Obtained, source: Source, now: datetime) -> Root:
        root = replace(new_record(obtained.root, source, now), certificate_pem=obtained.trusted_pem)
        return self._add(steps.prepare(self._held.roots, root), root, obtained.issuer, now, None)

    def _add(self, roots: Roots, root: Root, intermediate: Issuer, now: datetime, own: Issuer | None) -> Root:
        """Keep a new root, with what the active one says of it if its key is here."""
        held = self._held
        files.write_issuer(self._directory, f"intermediate{root.file}", intermediate)
        cross = dict(held.cross)
        before = held.own.get(held.roots.active.id)
        if before is not None:
            cross[root.id] = cross_signed(anchor(root), before, self.trust_domain, now)
            files.write(self._directory, f"cross{root.file}.pem", pem([cross[root.id]]))
        keys = held.own if own is None else {**held.own, root.id: own}
        self._commit(Held(roots, keys, {**held.signing, root.id: intermediate}, cross))
        return root

    def _step(self, step: Callable[[Roots], Roots]) -> Root:
        with self._changing, files.lock(self._directory):
            held = self._held
            roots = step(held.roots)
            own = {each.id: held.own[each.id] for each in roots.trusted if each.id in held.own}
            signing = {each.id: held.signing[each.id] for each in roots.trusted}
            linked = {each.id for each in (*roots.trusted, *roots.retired)}
            cross = {root_id: each for root_id, each in held.cross.items() if root_id in linked}
            self._commit(Held(roots, own, signing, cross))
            return _changed(held.roots, roots)

    def _commit(self, held: Held) -> None:
        files.write_roots(self._directory, held.roots)
        self._held = held
        # What follows can be done at the next start, too.
        files.guarded(lambda: holding.write_bundle(self._directory, held.roots))
        files.guarded(lambda: holding.tidy(self._directory, held.roots))

    def _current(self, now: datetime) -> Held:
        """Return what is held, its intermediate renewed at half of its life if that is ours to do."""
        held = self._held
        if holding.is_current(held, now):
            return held
        with self._changing:
            held = self._held
            if not holding.is_current(held, now):
                self._renew_intermediate(held, now)
            return self._held

    def _renew_intermediate(self, held: Held, now: datetime) -> None:
        root = held.roots.active
        signing = held.signing[root.id]
        own = held.own.get(root.id)
        if own is None:
            if signing.not_after <= now:
                msg = (
                    f"the intermediate of the upstream authority ended at {signing.not_after:%Y-%m-%d %H:%M} UTC "
                    f"and there is no new one: {self._problem or 'see the log'}"
                )
                raise AuthorityError(msg)
            return
        try:
            with files.lock(self._directory):
                holding.check_own(own, root, held.roots.trust_domain, now, self._directory)
                renewed = new_intermediate(own, held.roots.trust_domain, now)
                files.write_issuer(self._directory, f"intermediate{root.file}", renewed)
        except AuthorityError as error:
            if signing.not_after <= now:
                raise
            # Half a year is left to mend the disk; until then a full disk must not stop the mesh.
            _log.error("intermediate_not_renewed", error=str(error))
            return
        self._held = replace(held, signing={**held.signing, root.id: renewed})
        _log.info("intermediate_renewed", not_after=renewed.not_after.isoformat())

    def _troubled(self, problem: str) -> None:
        if problem and problem != self._problem:
            _log.error("intermediate_not_obtained", reason=problem, good_until=self.signing_until.isoformat())
        elif self._problem and not problem:
            _log.info("intermediate_obtained_again")
        self._problem = problem


def _changed(before: Roots, after: Roots) -> Root:
    known = set(before.items)
    changed = [each for each in after.items if each not in known]
    return changed[-1]
