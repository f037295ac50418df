"""Join tokens: one use, minutes of life, and never the token itself at rest."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

import pki
from hostmesh_controller.store import Store, TokenRecord
from hostmesh_controller.store.sqlite import open_store
from hostmesh_controller.tokens import Refusal, digest, new_token, redeem


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "store.sqlite")
    yield opened
    opened.close()


def test_a_token_has_256_random_bits_and_its_record_does_not_hold_them() -> None:
    token, record = new_token("web-1", pki.now())
    other, _ = new_token("web-1", pki.now())
    assert token != other
    assert len(token) == 43
    assert token not in repr(record)
    assert record.digest == digest(token)
    assert record.host == "web-1"


@pytest.mark.parametrize("life", [timedelta(), timedelta(seconds=-1), timedelta(days=2)])
def test_a_token_lives_for_minutes(life: timedelta) -> None:
    with pytest.raises(ValueError, match="lives for minutes"):
        new_token("web-1", pki.now(), life)
    with pytest.raises(ValueError, match="bound to a host"):
        new_token("", pki.now())


def test_a_token_works_once(store: Store) -> None:
    now = pki.now()
    token, record = new_token("web-1", now)
    store.add_token(record)
    redeemed = redeem(store, token, now, "peer")
    assert isinstance(redeemed, TokenRecord)
    assert (redeemed.id, redeemed.host, redeemed.redeemed_by) == (record.id, "web-1", "peer")
    assert redeem(store, token, now, "peer") is Refusal.USED


def test_every_refusal_has_its_own_reason(store: Store) -> None:
    now = pki.now()
    expired, expired_record = new_token("web-1", now, timedelta(minutes=5))
    revoked, revoked_record = new_token("web-1", now)
    store.add_token(expired_record)
    store.add_token(revoked_record)
    assert store.revoke_token(revoked_record.id, now)
    assert redeem(store, expired, now + timedelta(minutes=5), "peer") is Refusal.EXPIRED
    assert redeem(store, revoked, now, "peer") is Refusal.REVOKED
    assert redeem(store, "A" * 43, now, "peer") is Refusal.UNKNOWN
    for malformed in ("", "short", "A" * 44, "A" * 42 + "\n", "é" * 43):
        assert redeem(store, malformed, now, "peer") is Refusal.MALFORMED


def test_of_many_threads_exactly_one_redeems(store: Store) -> None:
    now = pki.now()
    token, record = new_token("web-1", now)
    store.add_token(record)
    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(lambda number: redeem(store, token, now, f"peer-{number}"), range(64)))
    assert sum(isinstance(each, TokenRecord) for each in outcomes) == 1
    assert outcomes.count(Refusal.USED) == 63
