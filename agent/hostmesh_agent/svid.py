"""A key with its certificate chain, checked: what `keys` makes and everybody else passes on."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import final

from hostmesh_api.identity import HostIdentity, WorkloadIdentity


class SvidError(Exception):
    """A certificate is not what it must be; the message says why and who must act."""


@final
@dataclass(frozen=True, slots=True)
class Standing:
    """What a certificate says of its time, and where it leads: as in Svid, `root` "" if nowhere."""

    serial: str
    not_before: datetime
    not_after: datetime
    root: str
    enrolment: str


@final
@dataclass(frozen=True, slots=True)
class Svid:
    """A key with its certificate chain, checked. `serial` is in hexadecimal, 32 digits.

    `root` is the root that it leads to: SHA-256 in hexadecimal. `enrolment` is the joining of the host under which it
    was issued, "" for none.
    """

    identity: WorkloadIdentity | HostIdentity
    serial: str
    not_before: datetime
    not_after: datetime
    key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    root: str = ""
    enrolment: str = ""

    @property
    def one_file(self) -> bytes:
        """Key and chain in one PEM file, so that replacing both is one rename."""
        return self.key_pem + self.chain_pem
