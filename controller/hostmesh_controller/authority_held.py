"""What the authority works with, as it is on disk: read, made for a new mesh, tidied. No locks: the caller has them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509

from hostmesh_controller import authority_files as files
from hostmesh_controller import authority_roots as steps
from hostmesh_controller.authority_certificates import (
    Issuer,
    fingerprint,
    issued_by,
    names_trust_domain,
    new_intermediate,
    new_root,
    pem,
)
from hostmesh_controller.authority_files import AuthorityError
from hostmesh_controller.authority_roots import Root, Roots, RootState, Source
from hostmesh_controller.authority_upstream import Upstream

MAX_CROSS: Final = 3
"""How many roots back a host may have slept: each is a certificate more in the handshake."""

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """What the authority works with: one of these after the other, each as it is on disk.

    `own` are the roots whose keys are here, `signing` the intermediates, `cross` the roots as the ones before them
    vouch for them; all by the ID of their root.
    """

    roots: Roots
    own: Mapping[str, Issuer]
    signing: Mapping[str, Issuer]
    cross: Mapping[str, x509.Certificate]


def load(directory: Path, trust_domain: str, now: datetime) -> Held | None:
    """Read what is on disk; None if there is nothing."""
    roots = files.read_roots(directory)
    if roots is None:
        own = files.read_issuer(directory, "root")
        _refuse_remains(directory, own)
        if own is None:
            return None
        # Of a mesh from before roots could change: it has one.
        root = replace(new_record(own.certificate, Source.SELF_SIGNED, own.certificate.not_valid_before_utc), file="")
        roots = steps.first(trust_domain, root, root.prepared_at)
        check_own(own, root, trust_domain, now, directory)
        files.write_roots(directory, roots)
    if roots.trust_domain != trust_domain:
        raise AuthorityError(_other_domain(directory / files.ROOTS, roots.trust_domain, trust_domain))
    own_roots: dict[str, Issuer] = {}
    signing: dict[str, Issuer] = {}
    cross: dict[str, x509.Certificate] = {}
    for root in roots.trusted:
        if root.source is Source.SELF_SIGNED:
            own_roots[root.id] = _read_own(directory, root, roots, now)
        signing[root.id] = _read_intermediate(directory, root, own_roots.get(root.id), trust_domain, now)
    for root in (*roots.trusted, *roots.retired):
        vouched = files.read_certificate(directory, f"cross{root.file}")
        if vouched is not None:
            cross[root.id] = vouched
    return Held(roots, own_roots, signing, cross)


def _refuse_remains(directory: Path, first: Issuer | None) -> None:
    """Refuse to begin anew where files are of a mesh whose roots are not known any more: hosts may trust them."""
    # An intermediate with an ID is no trace of one: it is written before what says that it is used.
    remains = sorted((*directory.glob("root-*.pem"), *(() if first else directory.glob("intermediate.pem"))))
    if remains:
        missing = "root.pem" if remains[0].name == "intermediate.pem" else files.ROOTS
        msg = (
            f"{directory / missing} is missing although {remains[0]} is there: restore it from a backup. "
            "(Or remove the whole directory for a new root; then every host must join again.)"
        )
        raise AuthorityError(msg)


def _read_own(directory: Path, root: Root, roots: Roots, now: datetime) -> Issuer:
    name = f"root{root.file}"
    own = files.read_issuer(directory, name)
    path = directory / f"{name}.pem"
    if own is None:
        msg = (
            f"{path} is missing although {directory / files.ROOTS} names it: restore it from a backup. "
            "(Or remove the whole directory for a new root; then every host must join again.)"
        )
        raise AuthorityError(msg)
    if fingerprint(own.certificate) != root.fingerprint:
        msg = f"{path} is not the root that {directory / files.ROOTS} names: restore both from one backup"
        raise AuthorityError(msg)
    if root.state is RootState.ACTIVE:
        check_own(own, root, roots.trust_domain, now, directory)
    return own


def _read_intermediate(directory: Path, root: Root, own: Issuer | None, trust_domain: str, now: datetime) -> Issuer:
    """Return the intermediate of a root; one that is missing or past its half is made anew if the root is our own."""
    name = f"intermediate{root.file}"
    found = files.read_issuer(directory, name)
    if found is not None and issued_by(found.chain[-1], anchor(root)):
        if own is None or now < found.renew_at or found.not_after == own.certificate.not_valid_after_utc > now:
            return found
    elif own is None:
        msg = (
            f"{directory / name}.pem is missing, or not of the root that {directory / files.ROOTS} names: "
            "restore both from one backup"
        )
        raise AuthorityError(msg)
    assert own is not None
    renewed = new_intermediate(own, trust_domain, now)
    files.write_issuer(directory, name, renewed)
    return renewed


def create(directory: Path, trust_domain: str, now: datetime, upstream: Upstream | None) -> Held:
    """Make the first root, or take the upstream's.

    The root is written before what says that it is there: a crash in between leaves a root that was used by nobody.
    """
    if upstream is not None:
        obtained = upstream.obtain(trust_domain, now)
        root = replace(new_record(obtained.root, upstream.source, now), certificate_pem=obtained.trusted_pem)
        files.write_issuer(directory, f"intermediate{root.file}", obtained.issuer)
        roots = steps.first(trust_domain, root, now)
        files.write_roots(directory, roots)
        return Held(roots, {}, {root.id: obtained.issuer}, {})
    own = new_root(trust_domain, now)
    root = replace(new_record(own.certificate, Source.SELF_SIGNED, now), file="")
    roots = steps.first(trust_domain, root, now)
    files.write_issuer(directory, "root", own)
    files.write_roots(directory, roots)
    intermediate = new_intermediate(own, trust_domain, now)
    files.write_issuer(directory, "intermediate", intermediate)
    return Held(roots, {root.id: own}, {root.id: intermediate}, {})


def new_record(certificate: x509.Certificate, source: Source, now: datetime) -> Root:
    whole = fingerprint(certificate)
    short = whole[: steps.ID_DIGITS]
    text = pem([certificate]).decode()
    return Root(short, whole, source, RootState.PREPARED, text, f"-{short}", now.replace(microsecond=0))


def anchor(root: Root) -> x509.Certificate:
    return x509.load_pem_x509_certificate(root.certificate_pem.encode())


def bundle(roots: Roots) -> bytes:
    texts = dict.fromkeys(
        pem([each]) for root in roots.trusted for each in x509.load_pem_x509_certificates(root.certificate_pem.encode())
    )
    return b"".join(texts)


def lineage(held: Held, now: datetime, *, retired: bool) -> list[x509.Certificate]:
    """Return what leads from the active root to those before it, as far as somebody may know no newer one.

    A host whose agent is away goes on with the roots that it knew: it too finds the new certificates good.
    """
    found: list[x509.Certificate] = []
    by_subject = {anchor(each).subject: each for each in held.roots.items}
    root = held.roots.active
    while len(found) < MAX_CROSS:
        vouched = held.cross.get(root.id)
        before = None if vouched is None else by_subject.get(vouched.issuer)
        if vouched is None or before is None or before.compromised or vouched.not_valid_after_utc <= now:
            break
        if not (before.trusted or retired):
            break
        found.append(vouched)
        root = before
    return found


def is_current(held: Held, now: datetime) -> bool:
    """Tell whether the intermediate is in the first half of its life, or cannot be renewed further."""
    root = held.roots.active
    signing = held.signing[root.id]
    own = held.own.get(root.id)
    if own is not None and signing.not_after == own.certificate.not_valid_after_utc:
        return now < signing.not_after
    return now < signing.renew_at


def check_own(own: Issuer, root: Root, trust_domain: str, now: datetime, directory: Path) -> None:
    path = directory / f"root{root.file}.pem"
    owned = names_trust_domain(own.certificate)
    if owned != [f"spiffe://{trust_domain}"]:
        raise AuthorityError(_other_domain(path, str(owned or "no trust domain"), trust_domain))
    if own.certificate.not_valid_after_utc <= now:
        msg = (
            f"{path} expired at {own.certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: "
            "check this machine's clock; if it is right, the mesh needs a new root and every host must join again"
        )
        raise AuthorityError(msg)


def _other_domain(path: Path, owned: str, trust_domain: str) -> str:
    return (
        f"{path} belongs to {owned}, the configuration says trust_domain = {trust_domain!r}: "
        "set trust_domain back, or use another state_dir for the other trust domain"
    )


def write_bundle(directory: Path, roots: Roots) -> None:
    files.write(directory, files.BUNDLE, bundle(roots))


def tidy(directory: Path, roots: Roots) -> None:
    """Remove keys of roots that are revoked, and what an interrupted step left."""
    names = {f"{kind}{each.file}" for each in roots.trusted for kind in ("root", "intermediate")}
    names |= {f"cross{each.file}" for each in (*roots.trusted, *roots.retired)}
    removed = files.keep_only(directory, names)
    if removed:
        _log.info("authority_files_removed", files=removed)
