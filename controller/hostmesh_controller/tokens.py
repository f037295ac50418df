"""Join tokens: 256 random bits that let one host join, once, within minutes. Only their digest is kept."""

import hashlib
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol

from hostmesh_controller.store import TokenRecord

DEFAULT_LIFE: Final = timedelta(minutes=15)
MAX_LIFE: Final = timedelta(days=1)
_TOKEN_BYTES: Final = 32
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


class Refusal(StrEnum):
    """Why a token was not taken. For the log: the peer is not told which."""

    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    USED = "used"
    REVOKED = "revoked"


class TokenStore(Protocol):
    """What tokens need of the store."""

    def redeem_token(self, digest: bytes, now: datetime, redeemer: str) -> TokenRecord | None: ...
    def tokens(self) -> list[TokenRecord]: ...


def new_token(
    host: str, now: datetime, life: timedelta = DEFAULT_LIFE, created_by: str = ""
) -> tuple[str, TokenRecord]:
    """Make a join token for `host`.

    Returns:
        the token, to be shown once and never kept, and the record for Store.add_token.

    Raises:
        ValueError: no host, or a life that is not within (0, 24 h].
    """
    if not host:
        msg = "a join token is bound to a host: name it"
        raise ValueError(msg)
    if not timedelta() < life <= MAX_LIFE:
        msg = f"a join token lives for minutes, at most {MAX_LIFE}, not {life}"
        raise ValueError(msg)
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    record = TokenRecord(
        id=secrets.token_hex(6),
        digest=digest(token),
        created_at=now,
        expires_at=now + life,
        host=host,
        created_by=created_by,
    )
    return token, record


def digest(token: str) -> bytes:
    """Return what is kept of a token. It has 256 random bits: a slow hash would add nothing."""
    return hashlib.sha256(token.encode()).digest()


def redeem(store: TokenStore, token: str, now: datetime, redeemer: str) -> TokenRecord | Refusal:
    """Use the token up. Of all who try at the same time, one gets the record.

    Looking up by digest leaks no more by its time than whether a guess of the digest was near.
    """
    if _TOKEN.fullmatch(token) is None:
        return Refusal.MALFORMED
    key = digest(token)
    record = store.redeem_token(key, now, redeemer)
    return _reason(store.tokens(), key, now) if record is None else record


def _reason(records: Sequence[TokenRecord], key: bytes, now: datetime) -> Refusal:
    record = next((each for each in records if secrets.compare_digest(each.digest, key)), None)
    if record is None:
        return Refusal.UNKNOWN
    if record.revoked_at is not None:
        return Refusal.REVOKED
    if record.redeemed_at is not None:
        return Refusal.USED
    # Not expired, yet refused: somebody else was using it up while we asked.
    return Refusal.EXPIRED if record.expires_at <= now else Refusal.USED
