"""Keys that RequestAuthentications name by URL: which are wanted, what of each counts, when to ask again."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from golden.objects import obj
from hostmesh_controller.key_sets import (
    KEPT,
    REFRESH,
    Answered,
    KeysError,
    KeySet,
    KeySets,
    address_in,
    failed,
    is_discovery,
    missing,
    record_of,
    restored,
    succeeded,
    wanted,
)
from hostmesh_controller.model.jwks import NOBODYS
from signing import Signer, key_set

NOW = datetime(2026, 1, 1, tzinfo=UTC)
URL = "https://keys.example.com/a"
ONE, TWO = Signer("one"), Signer("two", elliptic=True)


def authentication(name: str, *rules: dict[str, Any]) -> Any:
    return obj("RequestAuthentication", name, {"jwtRules": list(rules)})


def answered(*signers: Signer, etag: str = "") -> Answered:
    return Answered(URL, key_set(*signers).encode(), etag)


def test_a_url_is_wanted_once_by_all_who_name_it_and_as_patiently_as_the_most_patient() -> None:
    items = [
        authentication("a", {"jwksUri": URL, "timeout": "2s"}, {"issuer": "https://issuer.example.com/"}),
        authentication("b", {"jwksUri": URL, "timeout": "30s"}, {"issuer": "x", "jwks": key_set(ONE)}),
        authentication("c", {"issuer": "plain", "timeout": "1h"}),
    ]
    found = wanted(items)
    assert {url: (each.timeout_s, [key.name for key in each.users]) for url, each in found.items()} == {
        URL: (30, ["a", "b"]),
        "https://issuer.example.com/.well-known/openid-configuration": (5, ["a"]),
        "plain/.well-known/openid-configuration": (60, ["c"]),
    }
    assert [is_discovery(url) for url in found] == [False, True, True]


def test_keys_that_were_fetched_are_asked_for_again_in_a_while_each_url_in_its_own_time() -> None:
    found = succeeded(KeySet(URL), answered(ONE, TWO, etag='"1"'), NOW)
    assert (found.keys, found.state, found.etag, found.fetched_at) == (("one", "two"), "ok", '"1"', NOW)
    times = {succeeded(KeySet(f"{URL}/{n}"), answered(ONE), NOW).next_at for n in range(20)}
    assert len(times) > 10
    assert all(each is not None and NOW + REFRESH * 0.9 <= each <= NOW + REFRESH for each in times)


def test_a_set_that_is_as_it_was_counts_as_fetched() -> None:
    first = succeeded(KeySet(URL), answered(ONE, etag='"1"'), NOW)
    later = NOW + timedelta(hours=1)
    again = succeeded(replace(first, error="x", failures=3), Answered(URL, None, '"1"'), later)
    assert (again.text, again.fetched_at, again.error, again.failures) == (first.text, later, "", 0)
    with pytest.raises(KeysError, match="to one who has nothing"):
        succeeded(KeySet(URL), Answered(URL, None), NOW)


def test_what_is_no_key_set_changes_nothing_and_is_not_quoted() -> None:
    with pytest.raises(KeysError) as caught:
        succeeded(KeySet(URL), Answered(URL, b"root:x:0:0:secret"), NOW)
    assert str(caught.value) == "it answers with not a JWKS (RFC 7517): it is not JSON"


def test_a_set_without_a_usable_key_is_the_owner_s_word_and_refuses_everybody() -> None:
    found = succeeded(KeySet(URL), Answered(URL, b'{"keys": []}'), NOW)
    assert (found.text, found.keys, found.state) == (NOBODYS, (), "ok")


def test_after_a_failure_the_older_keys_count_and_the_pauses_grow_to_a_minute() -> None:
    found = succeeded(KeySet(URL), answered(ONE, etag='"1"'), NOW)
    pauses, now = [], NOW + REFRESH
    for _ in range(9):
        found = failed(found, "away", now)
        assert found.next_at is not None
        pauses.append((found.next_at - now).total_seconds())
        now = found.next_at
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert (found.state, found.keys, found.error, found.failures) == ("stale", ("one",), "away", 9)
    assert failed(KeySet(URL), "away", NOW).state == "none"


def test_keys_that_could_not_be_fetched_for_a_week_count_no_more() -> None:
    found = succeeded(KeySet(URL), answered(ONE, etag='"1"'), NOW)
    assert failed(found, "away", NOW + KEPT).keys == ("one",)
    gone = failed(found, "away", NOW + KEPT + timedelta(seconds=1))
    assert (gone.text, gone.etag, gone.state, record_of(gone)) == ("", "", "none", None)


def test_the_store_s_keys_count_after_a_restart_unless_they_are_too_old_or_none() -> None:
    record = record_of(succeeded(KeySet(URL), answered(ONE, etag='"1"'), NOW))
    assert record is not None
    found = restored(record, NOW + timedelta(days=6))
    assert (found.keys, found.etag, found.state, found.next_at) == (("one",), '"1"', "stale", None)
    assert restored(record, NOW + KEPT + timedelta(seconds=1)) == KeySet(URL)
    assert restored(replace(record, text="nonsense"), NOW) == KeySet(URL)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"jwks_uri": 5}',
        b'{"jwks_uri": "file:///etc/passwd"}',
        b'{"jwks_uri": "http://"}',
        b"[" * 99999,
    ],
)
def test_an_issuer_that_does_not_say_where_its_keys_are_has_none(document: bytes) -> None:
    with pytest.raises(KeysError, match="the issuer's configuration"):
        address_in(document)
    assert address_in(b'{"issuer": "x", "jwks_uri": "https://k.example.com/"}') == "https://k.example.com/"


def test_what_nobody_wants_is_forgotten_and_what_was_fetched_before_counts_from_the_start() -> None:
    sets = KeySets()
    sets.candidates[URL] = succeeded(KeySet(URL), answered(ONE), NOW)
    assert sets.want(wanted([authentication("a", {"jwksUri": URL}, {"jwksUri": f"{URL}2"})])) == set()
    assert [*sets.texts()] == [URL]
    assert sets.due(NOW) == [f"{URL}2"]
    assert sets.due(NOW + REFRESH) == [URL, f"{URL}2"]
    assert sets.want({}) == {URL, f"{URL}2"}
    assert sets.texts() == {}


def test_a_rule_without_keys_is_told_at_its_place() -> None:
    item = authentication("a", {"issuer": "x", "jwks": key_set(ONE)}, {"jwksUri": URL})
    [problem] = missing([item], {URL: "away"})
    assert str(problem) == (
        f"RequestAuthentication default/a: warning: spec.jwtRules[1].jwksUri: no keys from {URL}: away. "
        "Until there are, every token of this rule is refused"
    )
    assert problem.code == "no-keys-yet"
