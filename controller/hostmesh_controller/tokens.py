"""Join tokens: 256 random bits that let one host join, once, within minutes, or the hosts of one group.

Only their digest is kept.
"""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import ip_network
from typing import Final, Protocol

from hostmesh_controller.names import is_within
from hostmesh_controller.store import TokenRecord

DEFAULT_LIFE: Final = timedelta(minutes=15)
MAX_LIFE: Final = timedelta(days=1)
MAX_GROUP_LIFE: Final = timedelta(days=366)
"""That of a group is in images and launch templates, which live long."""
MAX_ALLOWED: Final = 64
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


class RevokingStore(Protocol):
    """What revoking needs of the store."""

    def tokens(self) -> list[TokenRecord]: ...
    def revoke_token(self, token_id: str, now: datetime, actor: str = "") -> bool: ...


def new_token(
    host: str, now: datetime, life: timedelta = DEFAULT_LIFE, created_by: str = "", *, allowed: Sequence[str] = ()
) -> tuple[str, TokenRecord]:
    """Make a join token for `host`; `allowed` are CIDR blocks from which alone it works.

    Returns:
        the token, to be shown once and never kept, and the record for Store.add_token.

    Raises:
        ValueError: no host, a life that is not within (0, 24 h], or what is no CIDR block.
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
        allowed=blocks_of(allowed),
    )
    return token, record


def new_group_token(
    group: tuple[str, str],
    now: datetime,
    life: timedelta = DEFAULT_LIFE,
    created_by: str = "",
    *,
    max_joins: int | None = None,
    allowed: Sequence[str] = (),
) -> tuple[str, TokenRecord]:
    """Make a join token with which hosts become members of a WorkloadGroup (namespace and name).

    Args:
        group: namespace and name.
        now: aware.
        life: how long hosts may join with it.
        created_by: for the audit.
        max_joins: how many hosts may; None: any number.
        allowed: CIDR blocks in which the address of each of them must be; nothing: it is the address it calls from.

    Returns:
        as `new_token`.

    Raises:
        ValueError: a life that is not within (0, 366 days], no positive number of joins, or what is no CIDR block.
    """
    if not timedelta() < life <= MAX_GROUP_LIFE:
        msg = f"the join token of a group lives for at most {MAX_GROUP_LIFE.days} days, not {life}"
        raise ValueError(msg)
    if max_joins is not None and max_joins < 1:
        msg = f"at least one host must be able to join, not {max_joins}"
        raise ValueError(msg)
    pool = "/".join(group)
    token, record = new_token(pool, now, MAX_LIFE, created_by, allowed=allowed)
    return token, replace(record, host="", pool=pool, expires_at=now + life, max_joins=max_joins)


def blocks_of(allowed: Sequence[str]) -> str:
    """Return CIDR blocks as a record keeps them.

    Raises:
        ValueError: too many, or what is none.
    """
    if len(allowed) > MAX_ALLOWED:
        msg = f"a token has at most {MAX_ALLOWED} blocks of addresses, not {len(allowed)}"
        raise ValueError(msg)
    return ",".join(str(ip_network(each.strip())) for each in allowed)


def allows(token: TokenRecord, address: str) -> bool:
    """Tell whether a host of the address ("": it is not known) may join with the token."""
    return not token.allowed or is_within(address, token.allowed.split(","))


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
    return _reason(_find(store.tokens(), key), now) if record is None else record


def look(store: TokenStore, token: str, now: datetime) -> TokenRecord | Refusal:
    """Return the record of a token that can be used, or that those can use who have joined with it; nothing changes."""
    if _TOKEN.fullmatch(token) is None:
        return Refusal.MALFORMED
    record = _find(store.tokens(), digest(token))
    if record is None or record.revoked_at is not None or record.expires_at <= now:
        return _reason(record, now)
    return Refusal.USED if record.used_up and not record.pool else record


def revoke_made_for(store: RevokingStore, now: datetime, actor: str, *, host: str = "", pool: str = "") -> None:
    """Revoke the tokens of a host, or of a group ("namespace/name")."""
    for each in store.tokens():
        if (each.host, each.pool) == (host, pool):
            store.revoke_token(each.id, now, actor)


def _find(records: Sequence[TokenRecord], key: bytes) -> TokenRecord | None:
    return next((each for each in records if secrets.compare_digest(each.digest, key)), None)


def _reason(record: TokenRecord | None, now: datetime) -> Refusal:
    if record is None:
        return Refusal.UNKNOWN
    if record.revoked_at is not None:
        return Refusal.REVOKED
    if record.used_up:
        return Refusal.USED
    # Not expired, yet refused: somebody else was using it up while we asked.
    return Refusal.EXPIRED if record.expires_at <= now else Refusal.USED
