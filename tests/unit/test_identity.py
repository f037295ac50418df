"""SPIFFE IDs: what is one, and that none of them is a path trick."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostmesh_api.identity import ControllerIdentity, HostIdentity, WorkloadIdentity, parse_identity

LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
SUBDOMAIN = st.lists(LABEL, min_size=1, max_size=4).map(".".join).filter(lambda name: len(name) <= 253)


def test_a_workload_and_a_host_are_written_as_istio_and_the_design_say() -> None:
    assert WorkloadIdentity("cluster.local", "shop", "cart").uri == "spiffe://cluster.local/ns/shop/sa/cart"
    assert HostIdentity("cluster.local", "web-1").uri == "spiffe://cluster.local/host/web-1"


@given(SUBDOMAIN, LABEL, SUBDOMAIN)
def test_what_is_written_is_read_back_equal(trust_domain: str, namespace: str, name: str) -> None:
    for identity in (WorkloadIdentity(trust_domain, namespace, name), HostIdentity(trust_domain, name)):
        assert parse_identity(identity.uri) == identity


@given(SUBDOMAIN, LABEL, SUBDOMAIN)
def test_a_slug_is_one_harmless_path_component(trust_domain: str, namespace: str, name: str) -> None:
    slug = WorkloadIdentity(trust_domain, namespace, name).slug
    assert slug.startswith("ns.")
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-._")
    assert len(slug) <= 200


def test_long_service_accounts_that_differ_at_the_end_have_different_slugs() -> None:
    long = ".".join(["a" * 60] * 4)
    first, second = (WorkloadIdentity("td", "ns", long + end) for end in (".b", ".c"))
    assert first.slug != second.slug
    # The shortened form holds a character no name can hold, so no identity has it as its full form.
    assert "_" in first.slug


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://",
        "spiffe://td",
        "spiffe://td/",
        "spiffe://td/ns/a/sa/b/",
        "spiffe://td/ns/a/sa/b\n",
        "spiffe://td/ns/a/sa/b?x=1",
        "spiffe://td/ns/a/sa/b#x",
        "spiffe://td/ns/a/sa/%62",
        "spiffe://td/ns/../sa/b",
        "spiffe://td/ns/a/sa/..",
        "spiffe://td/ns//sa/b",
        "spiffe://td/ns/a/sa/b/sa/c",
        "spiffe://td/ns/a.b/sa/c",
        "spiffe://td/ns/A/sa/b",
        "spiffe://TD/ns/a/sa/b",
        "SPIFFE://td/ns/a/sa/b",
        "spiffe://td:443/ns/a/sa/b",
        "spiffe://user@td/ns/a/sa/b",
        "spiffe://-td/ns/a/sa/b",
        "spiffe://td/host/",
        "spiffe://td/host/a/b",
        "spiffe://td/host/a b",
        "spiffe://td/host/\u0430",
        "spiffe://td/hostmesh/controller",
        "https://td/ns/a/sa/b",
        "spiffe://td/host/" + "a" * 64,
        "spiffe://td/host/" + ".".join(["a" * 63] * 40),
    ],
)
def test_what_is_not_exactly_an_identity_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"SPIFFE ID|DNS"):
        parse_identity(uri)


@given(st.text(max_size=80))
def test_any_text_is_an_identity_that_writes_the_same_or_is_refused(text: str) -> None:
    for uri in (text, f"spiffe://td/host/{text}", f"spiffe://td/ns/{text}/sa/x"):
        try:
            identity = parse_identity(uri)
        except ValueError:
            continue
        assert identity.uri == uri


def test_the_controllers_identity_is_nobodys_elses() -> None:
    with pytest.raises(ValueError, match="not a SPIFFE ID of a workload"):
        parse_identity(ControllerIdentity("td").uri)
