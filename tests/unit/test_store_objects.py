"""Objects, revisions and the audit log, on a real SQLite file."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hostmesh_controller.model import ObjectKey
from hostmesh_controller.store import Commit, Delete, Put, Store
from hostmesh_controller.store.sqlite import open_store

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "mesh.db")
    yield opened
    opened.close()


def key(name: str, kind: str = "WorkloadEntry", namespace: str = "default") -> ObjectKey:
    return ObjectKey(kind, namespace, name)


def body(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": {"name": name}, "spec": spec}


def put(store: Store, *names: str, now: datetime = NOW, **spec: Any) -> Commit:
    return store.commit([Put(key(name), body(name, **spec)) for name in names], actor="ann", now=now)


def test_a_new_store_is_empty_at_revision_0(store: Store) -> None:
    assert store.revision() == 0
    assert store.objects() == []
    assert store.snapshot() == (0, [])
    assert store.get(key("a")) is None
    assert store.audit() == []


def test_what_is_put_comes_back_with_the_store_s_facts(store: Store) -> None:
    commit = put(store, "a", address="10.0.0.1", note="é😀")
    assert commit == Commit(1, (key("a"),))
    found = store.get(key("a"))
    assert found is not None
    assert (found.key, found.revision, found.created_at) == (key("a"), 1, NOW)
    assert found.document == body("a", address="10.0.0.1", note="é😀")
    assert len(found.uid) == 36


def test_a_commit_of_many_changes_is_one_revision(store: Store) -> None:
    assert put(store, "a", "b", "c").revision == 1
    changes: list[Put | Delete] = [
        Put(key("a"), body("a", weight=2)),
        Delete(key("b")),
        Put(key("d"), body("d")),
        Delete(key("none")),
    ]
    commit = store.commit(changes, actor="bob", now=LATER)
    assert commit == Commit(2, (key("a"), key("b"), key("d")))
    assert [(item.key.name, item.revision) for item in store.objects()] == [("a", 2), ("c", 1), ("d", 2)]


def test_a_change_keeps_the_uid_and_the_time_of_creation(store: Store) -> None:
    put(store, "a")
    before = store.get(key("a"))
    put(store, "a", now=LATER, weight=2)
    after = store.get(key("a"))
    assert before is not None
    assert after is not None
    assert (after.uid, after.created_at, after.revision) == (before.uid, NOW, 2)


def test_an_object_made_again_after_deletion_is_another_one(store: Store) -> None:
    put(store, "a")
    before = store.get(key("a"))
    store.commit([Delete(key("a"))], actor="ann", now=NOW)
    put(store, "a", now=LATER)
    after = store.get(key("a"))
    assert before is not None
    assert after is not None
    assert after.uid != before.uid
    assert after.created_at == LATER


def test_what_changes_nothing_makes_no_revision_and_no_audit_record(store: Store) -> None:
    put(store, "a", weight=1)
    assert put(store, "a", weight=1) == Commit(1, ())
    assert store.commit([Delete(key("none"))], actor="ann", now=NOW) == Commit(1, ())
    assert store.commit([], actor="ann", now=NOW) == Commit(1, ())
    assert len(store.audit()) == 1


def test_of_several_changes_to_one_key_the_last_counts(store: Store) -> None:
    changes: list[Put | Delete] = [
        Put(key("a"), body("a", weight=1)),
        Delete(key("a")),
        Put(key("a"), body("a", weight=2)),
    ]
    assert store.commit(changes, actor="ann", now=NOW) == Commit(1, (key("a"),))
    found = store.get(key("a"))
    assert found is not None
    assert found.document["spec"] == {"weight": 2}


def test_objects_are_listed_by_kind_and_namespace_in_order_of_keys(store: Store) -> None:
    keys = [key("b"), key("a"), key("a", namespace="shop"), key("h", "Host", ""), key("Z")]
    store.commit([Put(each, {"n": each.name}) for each in keys], actor="ann", now=NOW)
    assert [item.key for item in store.objects()] == sorted(keys)
    assert [item.key for item in store.objects("WorkloadEntry", "shop")] == [key("a", namespace="shop")]
    assert [item.key for item in store.objects("Host")] == [key("h", "Host", "")]
    assert [item.key for item in store.objects(namespace="default")] == [key("Z"), key("a"), key("b")]
    assert store.objects("None") == []


def test_every_change_is_audited_newest_first_with_before_and_after(store: Store) -> None:
    put(store, "a", weight=1)
    put(store, "a", now=LATER, weight=2)
    store.commit([Delete(key("a"))], actor="bob", now=LATER)
    records = store.audit()
    assert [(record.actor, record.action, record.revision, record.at) for record in records] == [
        ("bob", "delete", 3, LATER),
        ("ann", "update", 2, LATER),
        ("ann", "create", 1, NOW),
    ]
    assert [(record.before, record.after) for record in records] == [
        (body("a", weight=2), None),
        (body("a", weight=1), body("a", weight=2)),
        (None, body("a", weight=1)),
    ]


def test_the_audit_log_is_read_in_pages_and_by_object(store: Store) -> None:
    put(store, "a", "b", "c")
    put(store, "b", weight=2)
    first = store.audit(limit=3)
    assert [record.key.name for record in first] == ["b", "c", "b"]
    assert [record.key.name for record in store.audit(before_id=first[-1].id)] == ["a"]
    assert [record.action for record in store.audit(key=key("b"))] == ["update", "create"]


def test_more_objects_than_fit_one_statement_are_changed_at_once(store: Store) -> None:
    names = [f"w-{index}" for index in range(1000)]
    assert len(put(store, *names).changed_keys) == 1000
    assert len(put(store, *names, weight=2).changed_keys) == 1000
    assert put(store, *names, weight=2).changed_keys == ()
    assert len(store.commit([Delete(key(name)) for name in names], actor="ann", now=NOW).changed_keys) == 1000
    assert store.objects() == []


def test_a_document_that_is_no_json_is_refused_and_nothing_changes(store: Store) -> None:
    with pytest.raises(TypeError):
        store.commit([Put(key("a"), {}), Put(key("b"), {"at": NOW})], actor="ann", now=NOW)
    assert store.revision() == 0
    assert store.objects() == []
    assert put(store, "a").revision == 1


def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="without a zone"):
        put(store, "a", now=datetime(2026, 1, 1))  # noqa: DTZ001 - that is the mistake
    assert store.revision() == 0


def test_what_was_committed_is_there_after_reopening(tmp_path: Path) -> None:
    first = open_store(tmp_path / "mesh.db")
    put(first, "a", weight=1)
    first.close()
    again: Store = open_store(tmp_path / "mesh.db")
    assert again.revision() == 1
    assert again.objects()[0].document == body("a", weight=1)
    again.close()
