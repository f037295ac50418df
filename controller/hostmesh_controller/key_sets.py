"""The keys behind the URLs of RequestAuthentications: which are wanted, what of each is known, when to ask again.

What was fetched once counts until something else is, for a week at most: an issuer whose server is away is no reason
to refuse its tokens, but who keeps the controller from it must not keep a withdrawn key alive for ever.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, Final

from hostmesh_controller.load import Problem
from hostmesh_controller.model import ApiObject, ObjectKey, path_text
from hostmesh_controller.model.jwks import JwksError, read_jwks
from hostmesh_controller.model.request_authentication import (
    DISCOVERY,
    JwtRule,
    RequestAuthenticationSpec,
    url_problem,
)
from hostmesh_controller.store import JwksRecord

KIND: Final = "RequestAuthentication"
DEFAULT_TIMEOUT_S: Final = 5.0
"""Istio's number."""
MAX_TIMEOUT_S: Final = 60.0
REFRESH: Final = timedelta(minutes=20)
"""Istio's number."""
KEPT: Final = timedelta(days=7)
"""How long keys count that could not be fetched again (Istio's number)."""
FIRST_RETRY: Final = timedelta(seconds=1)
MAX_RETRY: Final = timedelta(minutes=1)
"""While there are no keys nobody gets in with a token: a server that is back is found soon."""
_SPREAD: Final = 0.1
"""By how much of the interval URLs are asked at different times."""


@dataclass(frozen=True, slots=True)
class Want:
    """A URL whose keys some rules need."""

    url: str
    timeout_s: float = DEFAULT_TIMEOUT_S
    users: tuple[ObjectKey, ...] = ()


@dataclass(frozen=True, slots=True)
class KeySet:
    """What is known of the keys of one URL.

    Attributes:
        url: as a rule names it, or the issuer's discovery document.
        text: of the set as proxies get it; "" is none.
        keys: what the keys are called.
        source: where the set itself is.
        etag: of the set, "" if its server gives none.
        fetched_at: when it was last fetched, or found to be as it was.
        next_at: when it is asked for again; None: at once.
        error: why it could not be fetched the last time; "" if it could.
        failures: in a row.
    """

    url: str
    text: str = ""
    keys: tuple[str, ...] = ()
    source: str = ""
    etag: str = ""
    fetched_at: datetime | None = None
    next_at: datetime | None = None
    error: str = ""
    failures: int = 0

    @property
    def state(self) -> str:
        """`none`: every token is refused; `stale`: the last fetch failed and older keys count; else `ok`."""
        if not self.text:
            return "none"
        return "stale" if self.error else "ok"


@dataclass(frozen=True, slots=True)
class Answered:
    """What a server said: `body` is None where the set is as it was."""

    source: str
    body: bytes | None
    etag: str = ""


class KeysError(Exception):
    """What a server said holds no keys. The text is ours, nothing of it is the server's."""


def rules_of(item: ApiObject) -> tuple[JwtRule, ...]:
    return item.spec.jwt_rules if isinstance(item.spec, RequestAuthenticationSpec) else ()


def wanted(objects: Iterable[ApiObject]) -> dict[str, Want]:
    """Return the URLs whose keys objects need; of several rules with one URL the most patient decides."""
    result: dict[str, Want] = {}
    for item in objects:
        for rule in rules_of(item):
            if not rule.keys_url:
                continue
            timeout_s = DEFAULT_TIMEOUT_S if rule.timeout is None else rule.timeout.total_seconds()
            known = result.get(rule.keys_url, Want(rule.keys_url, 0))
            users = tuple(dict.fromkeys((*known.users, item.key)))
            result[rule.keys_url] = Want(rule.keys_url, min(max(known.timeout_s, timeout_s), MAX_TIMEOUT_S), users)
    return result


def is_discovery(url: str) -> bool:
    """Tell whether a URL is of the document that says where an issuer's keys are."""
    return url.endswith(DISCOVERY)


def address_in(document: bytes) -> str:
    """Return where an issuer says that its keys are.

    Raises:
        KeysError: it does not say.
    """
    try:
        found: Any = json.loads(document)
    except (ValueError, RecursionError):
        raise KeysError("the issuer's configuration is not JSON") from None
    url = found.get("jwks_uri") if isinstance(found, Mapping) else None
    if not isinstance(url, str) or url_problem(url):
        raise KeysError("the issuer's configuration has no usable jwks_uri")
    return url


def restored(record: JwksRecord, now: datetime) -> KeySet:
    """Return what the store has of a URL; it is asked for again at once."""
    was = KeySet(record.url)
    if now - record.fetched_at > KEPT:
        return was
    try:
        found = read_jwks(record.text)
    except JwksError:
        return was
    return replace(
        was,
        text=found.text,
        keys=found.keys,
        source=record.source,
        etag=record.etag,
        fetched_at=record.fetched_at,
        error="not fetched since the controller started",
    )


def succeeded(was: KeySet, answer: Answered, now: datetime, refresh: timedelta = REFRESH) -> KeySet:
    """Return what is known after an answer.

    Raises:
        KeysError: it holds no key set.
    """
    if answer.body is not None:
        try:
            found = read_jwks(answer.body)
        except JwksError as error:
            raise KeysError(f"it answers with {error}") from None
        was = replace(was, text=found.text, keys=found.keys, source=answer.source, etag=answer.etag)
    elif not was.text:
        raise KeysError("it says that nothing has changed, to one who has nothing")
    return replace(was, fetched_at=now, next_at=now + refresh * _share(was.url), error="", failures=0)


def failed(was: KeySet, reason: str, now: datetime, refresh: timedelta = REFRESH) -> KeySet:
    """Return what is known after an attempt that failed: the older keys count on, for a while."""
    pause = min(FIRST_RETRY * 2 ** min(was.failures, 16), MAX_RETRY, max(refresh, FIRST_RETRY))
    result = replace(was, next_at=now + pause, error=reason, failures=was.failures + 1)
    if was.fetched_at is not None and was.text and now - was.fetched_at > KEPT:
        # Without it the server would say that nothing has changed.
        result = replace(result, text="", keys=(), etag="")
    return result


def _share(url: str) -> float:
    """Return which part of the interval a URL waits: between 90 % and all of it, always the same."""
    return 1 - _SPREAD * int.from_bytes(blake2b(url.encode(), digest_size=2).digest()) / 0xFFFF


def record_of(found: KeySet) -> JwksRecord | None:
    """Return what the store keeps of a URL, None of one without keys."""
    if not found.text or found.fetched_at is None:
        return None
    return JwksRecord(found.url, found.text, found.source, found.etag, found.fetched_at)


def texts_of(found: Iterable[KeySet]) -> dict[str, str]:
    """Return the sets by URL, as the mesh takes them."""
    return {each.url: each.text for each in found if each.text}


def missing(objects: Iterable[ApiObject], errors: Mapping[str, str]) -> list[Problem]:
    """Return, for the rules of objects whose keys could not be had, what that means.

    Args:
        objects: that were applied.
        errors: why not, by URL.
    """
    return [
        _missing(item, index, rule, errors[rule.keys_url])
        for item in objects
        for index, rule in enumerate(rules_of(item))
        if rule.keys_url in errors
    ]


def _missing(item: ApiObject, index: int, rule: JwtRule, error: str) -> Problem:
    path = ("spec", "jwtRules", index, "jwksUri" if rule.jwks_uri else "issuer")
    file, line, column = str(item.key), 0, 0
    if item.origin is not None:
        file, (line, column) = item.origin.file, item.origin.place(path)
    message = f"no keys from {rule.keys_url}: {error}. Until there are, every token of this rule is refused"
    return Problem(file, line, column, path_text(path), message, "no-keys-yet", "warning", item.key)


@dataclass(slots=True)
class KeySets:
    """All that is known, and what is wanted. `candidates` were fetched for objects that may be refused yet."""

    wants: dict[str, Want] = field(default_factory=dict)
    known: dict[str, KeySet] = field(default_factory=dict)
    candidates: dict[str, KeySet] = field(default_factory=dict)

    def want(self, wants: dict[str, Want]) -> set[str]:
        """Take what is wanted now; return the URLs that nobody wants any more."""
        gone = self.known.keys() - wants.keys()
        self.known = {url: self.known.get(url) or self.candidates.get(url) or KeySet(url) for url in wants}
        self.wants, self.candidates = wants, {}
        return set(gone)

    def due(self, now: datetime) -> list[str]:
        return [url for url, each in self.known.items() if each.next_at is None or each.next_at <= now]

    def texts(self) -> dict[str, str]:
        return texts_of(self.known.values())
