"""Hosts as members of WorkloadGroups: who may be one, and what each gets."""

import re
from typing import Any

import pytest

from hostmesh_controller.groups import (
    HEALTH_CHECKS_ANNOTATION,
    MEMBER_OF,
    Membership,
    NotAdmittedError,
    candidate,
    derive,
    entry_key,
    group_key,
    host_document,
    is_member,
    member_entry,
    refusal_of,
    refuse_deletion,
)
from hostmesh_controller.model import ApiObject, ObjectKey, read_document
from hostmesh_controller.model.workloads import GROUP_ANNOTATION

GROUP = ObjectKey("WorkloadGroup", "shop", "reviews")
VM1 = ObjectKey("Host", "", "vm-1")
ENTRY = ObjectKey("WorkloadEntry", "shop", "reviews-vm-1")


def made(document: dict[str, Any]) -> ApiObject:
    found, faults = read_document(document, "default")
    assert found is not None, faults
    return found


def group(name: str = "reviews", **spec: Any) -> ApiObject:
    whole = {
        "metadata": {"labels": {"app": "reviews", "version": "v1"}, "annotations": {"team": "a"}},
        "template": {
            "labels": {"version": "v0", "tier": "back"},
            "ports": {"http": 8080},
            "serviceAccount": "reviews",
            "network": "n1",
            "locality": "eu/a/1",
            "weight": 5,
        },
    } | spec
    return made(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadGroup",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": whole,
        }
    )


def host(name: str = "vm-1", address: str = "10.0.0.1", member_of: str | None = "shop/reviews") -> ApiObject:
    metadata: dict[str, Any] = {"name": name}
    if member_of is not None:
        metadata["annotations"] = {MEMBER_OF: member_of}
    spec = {"addresses": [address]}
    return made({"apiVersion": "hostmesh.io/v1", "kind": "Host", "metadata": metadata, "spec": spec})


def world(*items: ApiObject) -> tuple[dict[ObjectKey, ApiObject], Membership]:
    membership = Membership()
    for item in items:
        membership.note(item.key, item)
    return {item.key: item for item in items}, membership


def test_a_member_is_what_the_template_says_at_the_hosts_address() -> None:
    entry = member_entry(group(), host())
    labels = {"app": "reviews", "version": "v1", "tier": "back"}
    assert entry.to_dict() == {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {
            "name": "reviews-vm-1",
            "namespace": "shop",
            "labels": labels,
            "annotations": {GROUP_ANNOTATION: "reviews", "team": "a"},
        },
        "spec": {
            "address": "10.0.0.1",
            "labels": labels,
            "ports": {"http": 8080},
            "serviceAccount": "reviews",
            "network": "n1",
            "locality": "eu/a/1",
            "weight": 5,
        },
    }


def test_a_probe_marks_the_entry_as_health_checked_as_istio_does() -> None:
    entry = member_entry(group(probe={"tcpSocket": {"port": 8080}}), host())
    assert entry.metadata.annotations[HEALTH_CHECKS_ANNOTATION] == "true"


def test_a_group_that_changes_changes_its_members_and_no_others() -> None:
    old, other = group(), group("other")
    one, two, stranger = host(), host("vm-2", "10.0.0.2"), host("vm-3", "10.0.0.3", "shop/other")
    existing, membership = world(old, other, one, two, stranger, host("vm-4", "10.0.0.4", None))
    derived = derive([group(metadata={"labels": {"version": "v2"}})], existing, membership)
    assert [each.key.name for each in derived.puts] == ["reviews-vm-1", "reviews-vm-2"]
    assert {each.metadata.labels["version"] for each in derived.puts} == {"v2"}
    assert (derived.problems, derived.deletes) == ((), ())


def test_a_member_that_is_sent_to_another_group_loses_the_entry_of_the_old_one() -> None:
    existing, membership = world(group(), group("other"), host(), member_entry(group(), host()))
    derived = derive([host(member_of="shop/other")], existing, membership)
    assert [each.key.name for each in derived.puts] == ["other-vm-1"]
    assert derived.deletes == (ENTRY,)
    derived = derive([host(member_of=None)], existing, membership)
    assert (derived.puts, derived.deletes) == ((), (ENTRY,))


@pytest.mark.parametrize(
    ("text", "said"), [("reviews", "names no group; write NAMESPACE/NAME"), ("shop/none", "there is no WorkloadGroup")]
)
def test_a_host_of_no_such_group_is_refused(text: str, said: str) -> None:
    existing, membership = world(group())
    (problem,) = derive([host(member_of=text)], existing, membership).problems
    assert said in problem.message


def test_a_members_entry_is_edited_by_its_group_alone() -> None:
    entry = member_entry(group(), host())
    existing, membership = world(group(), host(), entry)
    assert derive([entry], existing, membership).problems == ()
    for part, name, value in (("spec", "weight", 1), ("spec", "address", "10.9.9.9"), ("metadata", "labels", {})):
        document = entry.to_dict()
        document[part] = document[part] | {name: value}
        (problem,) = derive([made(document)], existing, membership).problems
        assert (
            problem.message == "it is made from WorkloadGroup shop/reviews: edit the group, and all its members follow"
        )
        assert problem.path == f"{part}.{name}"


def test_an_entry_edited_together_with_its_group_is_what_the_new_group_says() -> None:
    entry, new = member_entry(group(), host()), group(metadata={"labels": {"version": "v2"}})
    existing, membership = world(group(), host(), entry)
    assert derive([new, member_entry(new, host())], existing, membership).problems == ()
    assert len(derive([new, entry], existing, membership).problems) == 1


def test_an_entry_that_only_carries_the_annotation_is_nobodys() -> None:
    document = member_entry(group(), host("vm-9")).to_dict()
    document["spec"]["weight"] = 7
    existing, membership = world(group(), host())
    assert derive([made(document)], existing, membership).problems == ()


def test_a_member_does_not_take_the_name_of_an_entry_that_is_there() -> None:
    document = member_entry(group(), host()).to_dict()
    del document["metadata"]["annotations"]
    existing, membership = world(group(), made(document))
    (problem,) = derive([host()], existing, membership).problems
    assert "WorkloadEntry shop/reviews-vm-1 is there and not of WorkloadGroup shop/reviews: delete or rename" in str(
        problem
    )


def test_a_probe_of_somebody_else_is_a_warning() -> None:
    existing, membership = world()
    for host_name, warned in (("example.com", True), ("localhost", False), ("10.0.0.1", False), (None, False)):
        get = {"port": 80} | ({} if host_name is None else {"host": host_name})
        problems = derive([group(probe={"httpGet": get})], existing, membership).problems
        assert [(each.path, each.is_error) for each in problems] == [("spec.probe.httpGet.host", False)] * warned


def test_a_host_goes_with_its_entry_and_a_group_only_without_members() -> None:
    existing, membership = world(group(), host(), member_entry(group(), host()))
    assert refuse_deletion([VM1], existing, membership) == ([ENTRY], [])
    assert refuse_deletion([VM1, ENTRY], existing, membership) == ([], [])
    assert refuse_deletion([GROUP, VM1], existing, membership) == ([ENTRY], [])
    more, (problem,) = refuse_deletion([GROUP], existing, membership)
    assert (more, problem.message) == ([], "it has members: vm-1; let them leave first (hostmesh host remove NAME)")
    _, (problem,) = refuse_deletion([ENTRY], existing, membership)
    assert problem.message.endswith("let it leave: hostmesh host remove vm-1")


def test_a_free_name_and_a_member_that_comes_again_are_admitted() -> None:
    existing, _ = world(group(), host())
    new, again = candidate(GROUP, "", "VM-2", "", "10.0.0.2"), candidate(GROUP, "vm-1", "x", "", "10.0.0.1")
    assert (refusal_of(new, existing), is_member(new, existing)) == (None, False)
    assert (refusal_of(again, existing), is_member(again, existing)) == (None, True)
    assert made(host_document(new)).key.name == "vm-2"
    assert member_entry(group(), made(host_document(new))).key == entry_key(GROUP, "vm-2")


@pytest.mark.parametrize(
    ("there", "address", "said"),
    [
        (host(member_of=None), "10.0.0.1", "is registered, not as a member of a group.*hostmesh token create vm-1"),
        (host(member_of="shop/other"), "10.0.0.1", "is a member of WorkloadGroup shop/other.*--name NAME"),
        (host(), "10.0.0.7", "is a member at 10.0.0.1, not at 10.0.0.7.*hostmesh host remove vm-1"),
    ],
)
def test_a_name_that_is_somebody_elses_is_refused_with_the_cure(there: ApiObject, address: str, said: str) -> None:
    existing, _ = world(group(), group("other"), there)
    refusal = refusal_of(candidate(GROUP, "vm-1", "", "", address), existing)
    assert refusal is not None
    assert re.search(said, refusal)


def test_nobody_joins_a_group_that_is_gone() -> None:
    assert "there is no WorkloadGroup shop/reviews any more" in str(
        refusal_of(candidate(GROUP, "a", "", "", "::1"), {})
    )


@pytest.mark.parametrize(
    ("name", "hostname", "address", "said"),
    [
        ("", "my_host", "", "join with --name"),
        ("UPPER", "x", "", "choose another one for --name"),
        ("a", "x", "nowhere", "join with --address IP"),
    ],
)
def test_what_cannot_be_a_name_or_an_address_is_refused(name: str, hostname: str, address: str, said: str) -> None:
    with pytest.raises(NotAdmittedError, match=said):
        candidate(GROUP, name, hostname, address, "10.0.0.1")


def test_a_group_is_named_with_its_namespace() -> None:
    assert group_key("shop/reviews") == GROUP
    assert [group_key(each) for each in ("", "a", "/a", "a/", "a/b/c")] == [None] * 5


def test_a_member_that_leaves_is_remembered_no_more() -> None:
    _, membership = world(group(), host(), host("vm-2", "10.0.0.2"))
    assert membership.members(GROUP) == ["vm-1", "vm-2"]
    membership.note(VM1, None)
    assert (membership.members(GROUP), membership.group("vm-1")) == (["vm-2"], None)
