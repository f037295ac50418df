"""What all attestors have in common: what they are shown, and what they say. Pure.

An attestor is a function of the evidence, the trust that the operator configured, and the time. It decides who
somebody is, never what they may be: that is `policy`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

from hostmesh_api.proof import JOIN, statement
from hostmesh_api.v1.hostmesh_pb2 import JoinRequest

KINDS: Final = ("x509pop", "ssh", "aws", "gcp", "azure", "key_alone")
"""Names of attestors: fields of JoinRequest, words of the CLI, tables of controller.toml."""
MAX_SUMMARY: Final = 400


class EvidenceError(Exception):
    """The evidence proves nothing; the message is for the log. The peer is told little."""


@dataclass(frozen=True, slots=True)
class Attested:
    """Who somebody is, by the word of an attestor.

    Attributes:
        kind: of the attestor.
        names: what the template of a host's name may use: one mapping for each name that was vouched for.
        summary: of the evidence, for the operator.
        subject: a machine that may join once ("aws:ACCOUNT/INSTANCE"), since any program on it can show such evidence
            again; "" where each proof needs a key that only the machine's owner has.
        born: when the machine began, where evidence cannot be fresh (AWS); else None.
        approved: the operator has named this very key for this very host, so no other word is needed.
    """

    kind: str
    names: Sequence[Mapping[str, str]]
    summary: str
    subject: str = ""
    born: datetime | None = None
    approved: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """A request to join, whose nonce is good and whose CSR proves its key."""

    request: JoinRequest = field(repr=False)

    @property
    def statement(self) -> bytes:
        """What the host must have signed."""
        return statement(JOIN, self.request.nonce, self.request.csr_der)

    @property
    def wanted(self) -> str:
        """The name that the host gives itself."""
        return self.request.name or self.request.facts.hostname.lower()


class Attestor(Protocol):
    """One kind of evidence."""

    def verify(self, shown: Shown, now: datetime) -> Attested:
        """Return who it is.

        Raises:
            EvidenceError: says why not.
        """
        ...


def printable(text: str) -> str:
    """Return text of strangers as an operator may be shown it: no control characters, and not long."""
    return "".join(each if each.isprintable() else "?" for each in text[:MAX_SUMMARY])
