"""Whether a host that was away for long may come back by the key of its last certificate. Pure.

The certificate itself may have ended and its issuer may be gone: what counts is the controller's own record of it.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from hostmesh_controller.attest.signatures import read_key, signed
from hostmesh_controller.store import CertificateRecord


@dataclass(frozen=True, slots=True)
class Return:
    """What a host that comes back says, with the statement that it must have signed."""

    serial: str
    public_key_der: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    statement: bytes = field(repr=False)


def why_not(
    back: Return, own: Sequence[CertificateRecord], used_serial: str, within: timedelta, now: datetime
) -> str | None:
    """Return why the host may not come back, for the log; None if it may.

    Args:
        back: what it says.
        own: the host's own certificates, oldest first.
        used_serial: of the newest that it has used; "" if none.
        within: how long after its certificate's end a host may come back; zero: never.
        now: aware.
    """
    if within <= timedelta():
        return "re-attestation is turned off (attest.reattest_days)"
    place = next((at for at, each in enumerate(own) if each.serial == back.serial), None)
    if place is None:
        return "no certificate of that serial is known"
    record = own[place]
    key = read_key(back.public_key_der)
    if key is None or not hmac.compare_digest(record.key_sha256, hashlib.sha256(back.public_key_der).hexdigest()):
        return "the certificate is for another key"
    if any(each.serial == used_serial for each in own[place + 1 :]):
        return "its certificate was replaced by a newer one that was in use"
    if now - record.not_after > within:
        return f"it was away for too long: its certificate ended at {record.not_after:%Y-%m-%d %H:%M} UTC"
    return None if signed(key, back.signature, back.statement) else "the signature is not of its certificate's key"
