"""Join tokens, API tokens and certificates, inside a transaction the caller has begun."""

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.store import tables
from hostmesh_controller.store.objects import write_event
from hostmesh_controller.store.records import ApiTokenRecord, CertificateRecord, TokenRecord

KEPT_AFTER_END: Final = timedelta(days=366)
"""A host's own certificates: as long as a host may be away at most (attest.reattest_within)."""


def _token_key(token_id: str) -> ObjectKey:
    return ObjectKey("Token", "", token_id)


def write_token(connection: Connection, token: TokenRecord) -> None:
    """Keep a new join token; see Store.add_token."""
    try:
        connection.execute(insert(tables.tokens).values(asdict(token)))
    except IntegrityError:
        raise ValueError(f"join token {token.id!r} is there already") from None
    write_event(connection, "token.add", _token_key(token.id), actor=token.created_by, now=token.created_at)


def redeem(connection: Connection, digest: bytes, now: datetime, redeemer: str) -> TokenRecord | None:
    """Use a join token, up if it is for one host; see Store.redeem_token.

    One conditional update decides: whatever runs beside it, the row counts no more joins than it may.
    """
    table = tables.tokens
    used = (
        connection.execute(
            update(table)
            .where(
                table.c.digest == digest,
                or_(table.c.max_joins.is_(None), table.c.joins < table.c.max_joins),
                table.c.revoked_at.is_(None),
                table.c.expires_at > now,
            )
            .values(redeemed_at=now, redeemed_by=redeemer, joins=table.c.joins + 1)
            .returning(*table.c)
        )
        .mappings()
        .one_or_none()
    )
    if used is None:
        return None
    write_event(connection, "token.redeem", _token_key(used["id"]), actor=redeemer, now=now)
    return TokenRecord(**used)


def read_tokens(connection: Connection) -> list[TokenRecord]:
    """Return all join tokens, oldest first."""
    table = tables.tokens
    rows = connection.execute(select(table).order_by(table.c.created_at, table.c.id))
    return [TokenRecord(**row) for row in rows.mappings()]


def revoke_token(connection: Connection, token_id: str, now: datetime, actor: str) -> bool:
    """Make a join token useless; see Store.revoke_token."""
    table = tables.tokens
    # Those who joined a group may join again with its token, also when no others may.
    can_be_used = or_(table.c.pool != "", table.c.redeemed_at.is_(None))
    usable = (table.c.id == token_id, can_be_used, table.c.revoked_at.is_(None))
    if not connection.execute(update(table).where(*usable).values(revoked_at=now)).rowcount:
        return False
    write_event(connection, "token.revoke", _token_key(token_id), actor=actor, now=now)
    return True


def write_api_token(connection: Connection, token: ApiTokenRecord, actor: str) -> None:
    """Keep a new API token; see Store.add_api_token."""
    try:
        connection.execute(insert(tables.api_tokens).values(asdict(token)))
    except IntegrityError:
        raise ValueError(f"API token {token.id!r} is there already") from None
    write_event(connection, "apitoken.add", ObjectKey("ApiToken", "", token.id), actor=actor, now=token.created_at)


def find_api_token(connection: Connection, digest: bytes) -> ApiTokenRecord | None:
    """Return the API token of that digest unless it was revoked."""
    table = tables.api_tokens
    query = select(table).where(table.c.digest == digest, table.c.revoked_at.is_(None))
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else ApiTokenRecord(**row)


def read_api_tokens(connection: Connection) -> list[ApiTokenRecord]:
    """Return all API tokens, oldest first."""
    table = tables.api_tokens
    rows = connection.execute(select(table).order_by(table.c.created_at, table.c.id))
    return [ApiTokenRecord(**row) for row in rows.mappings()]


def revoke_api_token(connection: Connection, token_id: str, now: datetime, actor: str) -> bool:
    """Make an API token useless; see Store.revoke_api_token."""
    table = tables.api_tokens
    usable = (table.c.id == token_id, table.c.revoked_at.is_(None))
    if not connection.execute(update(table).where(*usable).values(revoked_at=now)).rowcount:
        return False
    write_event(connection, "apitoken.revoke", ObjectKey("ApiToken", "", token_id), actor=actor, now=now)
    return True


def note_api_token_use(connection: Connection, token_id: str, now: datetime) -> None:
    """Keep when an API token was last used."""
    table = tables.api_tokens
    connection.execute(update(table).where(table.c.id == token_id).values(last_used_at=now))


def write_certificate(connection: Connection, certificate: CertificateRecord) -> None:
    """Remember an issued certificate, and forget those of the host that nothing needs any more.

    A workload's is of no use once it has ended; by a host's own the host may come back for a while.
    """
    table, now = tables.certificates, certificate.issued_at
    own = table.c.spiffe_id.endswith(f"/host/{certificate.host}", autoescape=True)
    ended = or_(table.c.not_after < now - KEPT_AFTER_END, and_(~own, table.c.not_after < now))
    connection.execute(delete(table).where(table.c.host == certificate.host, ended))
    try:
        connection.execute(insert(tables.certificates).values(asdict(certificate)))
    except IntegrityError:
        raise ValueError(f"a certificate with serial {certificate.serial} is there already") from None


def read_certificates(connection: Connection, host: str) -> list[CertificateRecord]:
    """Return the certificates issued to the host and its workloads, oldest first."""
    table = tables.certificates
    query = select(table).where(table.c.host == host).order_by(table.c.issued_at, table.c.serial)
    return [CertificateRecord(**row) for row in connection.execute(query).mappings()]


def forget_certificates(connection: Connection, host: str) -> None:
    """Drop the host's certificate records."""
    connection.execute(delete(tables.certificates).where(tables.certificates.c.host == host))
