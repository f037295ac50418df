"""Tokens, certificates, hosts' state and virtual addresses, on a real SQLite file."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostmesh_controller.store import (
    ApiTokenRecord,
    CertificateRecord,
    HostState,
    Store,
    StoreError,
    TokenRecord,
)
from hostmesh_controller.store.runtime import LAST_VIP, choose_vips
from hostmesh_controller.store.sqlite import open_store

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "mesh.db")
    yield opened
    opened.close()


TOKEN = TokenRecord("t1", b"d" * 32, NOW, NOW + timedelta(minutes=10), host="h1", created_by="ann")


def test_a_join_token_works_once(store: Store) -> None:
    store.add_token(TOKEN)
    assert store.tokens() == [TOKEN]
    used = replace(TOKEN, redeemed_at=LATER, redeemed_by="h1", joins=1)
    assert store.redeem_token(TOKEN.digest, LATER, "h1") == used
    assert store.redeem_token(TOKEN.digest, LATER, "h1") is None
    assert store.tokens() == [used]


def test_unknown_expired_and_revoked_tokens_do_not_work(store: Store) -> None:
    store.add_token(TOKEN)
    assert store.redeem_token(b"other", NOW, "h1") is None
    assert store.redeem_token(TOKEN.digest, TOKEN.expires_at, "h1") is None
    assert store.revoke_token("t1", NOW)
    assert store.redeem_token(TOKEN.digest, NOW, "h1") is None
    assert not store.revoke_token("t1", NOW)
    assert not store.revoke_token("none", NOW)


def test_a_used_token_cannot_be_revoked_and_a_digest_is_there_once(store: Store) -> None:
    store.add_token(TOKEN)
    with pytest.raises(ValueError, match="is there already"):
        store.add_token(replace(TOKEN, id="t2"))
    store.redeem_token(TOKEN.digest, NOW, "h1")
    assert not store.revoke_token("t1", NOW)


def test_the_life_of_a_token_is_audited_without_its_digest(store: Store) -> None:
    store.add_token(TOKEN)
    store.redeem_token(TOKEN.digest, LATER, "h1")
    assert [(record.action, record.actor, record.key.name, record.after) for record in store.audit()] == [
        ("token.redeem", "h1", "t1", None),
        ("token.add", "ann", "t1", None),
    ]


def test_api_tokens_are_found_until_they_are_revoked(store: Store) -> None:
    token = ApiTokenRecord("a1", "ci", "operator", b"x" * 32, NOW, LATER)
    forever = ApiTokenRecord("a2", "ops", "viewer", b"y" * 32, LATER)
    store.add_api_token(forever)
    store.add_api_token(token)
    assert store.find_api_token(token.digest) == token
    assert store.api_tokens() == [token, forever]
    assert store.revoke_api_token("a1", LATER)
    assert not store.revoke_api_token("a1", LATER)
    assert store.find_api_token(token.digest) is None
    assert store.find_api_token(b"none") is None
    assert store.api_tokens() == [replace(token, revoked_at=LATER), forever]
    with pytest.raises(ValueError, match="is there already"):
        store.add_api_token(replace(forever, id="a3"))


def test_certificates_are_kept_by_host_until_it_is_forgotten(store: Store) -> None:
    first = CertificateRecord("0a", "spiffe://td/host/h1", "h1", LATER, NOW)
    second = CertificateRecord("0b", "spiffe://td/ns/a/sa/b", "h1", LATER, LATER)
    other = CertificateRecord("0c", "spiffe://td/host/h2", "h2", LATER, NOW)
    epochs = [store.certificates_epoch("h1")]
    for certificate in (second, other, first):
        store.add_certificate(certificate)
        epochs.append(store.certificates_epoch("h1"))
    assert store.certificates("h1") == [first, second]
    store.put_host_state("h1", HostState(joined_at=NOW))
    store.forget_host("h1")
    epochs.append(store.certificates_epoch("h1"))
    assert store.certificates("h1") == []
    assert store.certificates("h2") == [other]
    assert store.host_states() == {"h1": HostState(joined_at=NOW)}
    # A change of another host is none of this one's.
    assert [old == new for old, new in pairwise(epochs)] == [False, True, False, False]


def test_certificates_that_ended_are_forgotten_and_a_hosts_own_only_when_it_can_no_more_come_back(
    store: Store,
) -> None:
    day = timedelta(days=1)
    own = CertificateRecord("0a", "spiffe://td/host/h1", "h1", NOW + day, NOW)
    workloads = CertificateRecord("0b", "spiffe://td/ns/a/sa/b", "h1", NOW + day, NOW)
    others = CertificateRecord("0c", "spiffe://td/ns/a/sa/b", "h2", NOW + day, NOW)
    for each in (own, workloads, others):
        store.add_certificate(each)
    for serial, days, kept in (("1a", 1, {"0a", "0b"}), ("1b", 2, {"0a"}), ("1c", 367, {"0a"}), ("1d", 368, set())):
        at = NOW + days * day
        store.add_certificate(CertificateRecord(serial, "spiffe://td/host/h1", "h1", at + day, at))
        assert {each.serial for each in store.certificates("h1") if each.serial[0] == "0"} == kept
    assert store.certificates("h2") == [others]


def test_a_serial_is_there_once(store: Store) -> None:
    certificate = CertificateRecord("0a", "spiffe://td/host/h1", "h1", LATER, NOW)
    store.add_certificate(certificate)
    with pytest.raises(ValueError, match="serial 0a"):
        store.add_certificate(certificate)


def test_the_state_of_a_host_is_replaced_whole(store: Store) -> None:
    state = HostState(NOW, None, LATER, b"\x00report\xff", frozenset({("shop", "reviews"), ("a", "b")}), LATER)
    store.put_host_state("h1", state)
    store.put_host_state("h2", HostState())
    assert store.host_states() == {"h1": state, "h2": HostState()}
    store.put_host_state("h1", HostState(left_at=LATER))
    assert store.host_states()["h1"] == HostState(left_at=LATER)
    store.drop_host_state("h1")
    store.drop_host_state("none")
    assert set(store.host_states()) == {"h2"}


def test_virtual_addresses_stay_until_they_are_released(store: Store) -> None:
    first = store.allocate_vips(["a.default.svc.cluster.local", "b", "b"])
    assert set(first) == {"a.default.svc.cluster.local", "b"}
    assert store.allocate_vips(["b", "c"])["b"] == first["b"]
    assert store.vips() == {**first, **store.allocate_vips(["c"])}
    store.release_vips(["b", "none"])
    assert set(store.vips()) == {"a.default.svc.cluster.local", "c"}
    assert store.allocate_vips(["b"])["b"] == first["b"]
    assert store.allocate_vips([]) == {}


@given(st.sets(st.text(min_size=1, max_size=3), max_size=40), st.dictionaries(st.text("xyz"), st.integers(1, LAST_VIP)))
def test_no_index_is_given_twice_and_all_are_in_range(names: set[str], known: dict[str, int]) -> None:
    chosen = choose_vips(names, known)
    assert set(chosen) == names
    assert len(set(chosen.values())) == len(names)
    assert not set(chosen.values()) & set(known.values())
    assert all(1 <= position <= LAST_VIP for position in chosen.values())


def test_names_that_hash_alike_move_on_and_go_round_the_end() -> None:
    [wanted] = choose_vips(["name"], {}).values()
    assert choose_vips(["name"], {"other": wanted}) == {"name": wanted % LAST_VIP + 1}
    taken = {str(index): index for index in range(1, LAST_VIP + 1)}
    del taken["7"]
    assert choose_vips(["name"], taken) == {"name": 7}


def test_a_range_that_is_used_up_is_an_error_with_a_cure() -> None:
    taken = {str(index): index for index in range(1, LAST_VIP + 1)}
    with pytest.raises(StoreError, match="remove services"):
        choose_vips(["name"], taken)
