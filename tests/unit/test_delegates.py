"""How the routes of a VirtualService and its delegates become one, and when they do not."""

from typing import Any

import pytest

from golden.objects import mesh_of, obj
from hostmesh_controller.mesh.delegates import delegates_of, http_routes, merged_matches, merged_route
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.model.virtual_service import HttpMatch, HttpRoute


def matches(*found: dict[str, Any]) -> tuple[HttpMatch, ...]:
    return tuple(map(HttpMatch.model_validate, found))


def written(found: tuple[HttpMatch, ...] | None) -> list[dict[str, Any]] | None:
    if found is None:
        return None
    return [each.model_dump(by_alias=True, exclude_defaults=True) for each in found]


@pytest.mark.parametrize(
    ("root", "delegate", "merged"),
    [
        # Either alone is what there is.
        ([], [{"uri": {"prefix": "/a"}}], [{"uri": {"prefix": "/a"}}]),
        ([{"uri": {"prefix": "/a"}}], [], [{"uri": {"prefix": "/a"}}]),
        # A path must be within the root's.
        ([{"uri": {"prefix": "/a"}}], [{"uri": {"prefix": "/a/b"}}], [{"uri": {"prefix": "/a/b"}}]),
        ([{"uri": {"prefix": "/a"}}], [{"uri": {"exact": "/a/b"}}], [{"uri": {"exact": "/a/b"}}]),
        ([{"uri": {"prefix": "/a/b"}}], [{"uri": {"prefix": "/a"}}], None),
        ([{"uri": {"exact": "/a"}}], [{"uri": {"prefix": "/a"}}], None),
        ([{"uri": {"exact": "/a"}}], [{"uri": {"exact": "/a"}}], [{"uri": {"exact": "/a"}}]),
        ([{"uri": {"exact": "/a"}}], [{"uri": {"exact": "/b"}}], None),
        # Of patterns nobody can tell.
        ([{"uri": {"regex": "/a"}}], [{"uri": {"exact": "/a"}}], None),
        ([{"uri": {"prefix": "/a"}}], [{"uri": {"regex": "/a"}}], None),
        ([{"uri": {"regex": "/a"}}], [{"uri": {"regex": "/a"}}], None),
        # What one of them leaves open the other says.
        (
            [{"uri": {"prefix": "/a"}, "headers": {"x": {"exact": "1"}}}],
            [{"method": {"exact": "GET"}, "headers": {"y": {"exact": "2"}}, "port": 80}],
            [
                {
                    "uri": {"prefix": "/a"},
                    "method": {"exact": "GET"},
                    "headers": {"x": {"exact": "1"}, "y": {"exact": "2"}},
                    "port": 80,
                }
            ],
        ),
        ([{"headers": {"x": {"exact": "1"}}}], [{"headers": {"x": {"exact": "2"}}}], None),
        ([{"withoutHeaders": {"x": {"exact": "1"}}}], [{"withoutHeaders": {"x": {"exact": "2"}}}], None),
        ([{"queryParams": {"x": {"prefix": "1"}}}], [{"queryParams": {"x": {"exact": "2"}}}], None),
        ([{"port": 80}], [{"port": 81}], None),
        ([{"port": 80}], [{"uri": {"prefix": "/a"}}], [{"uri": {"prefix": "/a"}, "port": 80}]),
        ([{"ignoreUriCase": True, "uri": {"prefix": "/a"}}], [{"uri": {"prefix": "/a"}}], None),
        # Of callers.
        (
            [{"sourceLabels": {"app": "a"}}],
            [{"sourceLabels": {"v": "1"}}],
            [{"sourceLabels": {"app": "a", "v": "1"}}],
        ),
        ([{"sourceLabels": {"app": "a"}}], [{"sourceLabels": {"app": "b"}}], None),
        ([{"sourceNamespace": "a"}], [{"sourceNamespace": "a"}], [{"sourceNamespace": "a"}]),
        ([{"sourceNamespace": "a"}], [{"uri": {"prefix": "/a"}}], None),
        ([{"uri": {"prefix": "/a"}}], [{"sourceNamespace": "a"}], [{"uri": {"prefix": "/a"}, "sourceNamespace": "a"}]),
        ([{"gateways": ["x", "y"]}], [{"gateways": ["x"]}], [{"gateways": ("x",)}]),
        ([{"gateways": ["x"]}], [{"gateways": ["x", "y"]}], None),
        # Each of the delegate's is combined with each of the root's that it fits.
        (
            [{"uri": {"prefix": "/a"}, "name": "one"}, {"uri": {"prefix": "/b"}, "name": "two"}],
            [{"headers": {"x": {}}, "name": "sub"}, {"uri": {"exact": "/b/c"}}],
            [
                {"uri": {"prefix": "/a"}, "headers": {"x": {}}, "name": "one-sub"},
                {"uri": {"prefix": "/b"}, "headers": {"x": {}}, "name": "two-sub"},
                {"uri": {"exact": "/b/c"}, "name": "two"},
            ],
        ),
        # One that fits none of them makes all of it void.
        ([{"uri": {"prefix": "/a"}}], [{"uri": {"prefix": "/a/b"}}, {"uri": {"prefix": "/c"}}], None),
    ],
)
def test_matches_are_combined_as_in_istio(
    root: list[dict[str, Any]], delegate: list[dict[str, Any]], merged: list[dict[str, Any]] | None
) -> None:
    found = written(merged_matches(matches(*root), matches(*delegate)))
    assert found == (None if merged is None else written(matches(*merged)))


def test_a_delegates_route_takes_from_the_root_what_it_leaves_open() -> None:
    root = HttpRoute.model_validate(
        {
            "name": "root",
            "delegate": {"name": "d"},
            "timeout": "1s",
            "retries": {"attempts": 1},
            "rewrite": {"uri": "/root"},
            "mirrors": [{"destination": {"host": "copy"}}],
            "headers": {"request": {"set": {"a": "1"}}},
        }
    )
    delegate = HttpRoute.model_validate(
        {"name": "own", "route": [{"destination": {"host": "a"}}], "timeout": "2s", "rewrite": {"uri": "/own"}}
    )
    found = merged_route(root, delegate)
    assert found is not None
    assert (found.name, found.timeout, found.rewrite) == ("root-own", delegate.timeout, delegate.rewrite)
    assert (found.retries, found.mirrors, found.headers) == (root.retries, root.mirrors, root.headers)
    assert (found.route, found.delegate) == (delegate.route, None)


def root(*delegates: dict[str, str], namespace: str = "default") -> ApiObject:
    routes: list[dict[str, Any]] = [{"name": "before", "route": [{"destination": {"host": "a"}}]}]
    routes += [{"delegate": each} for each in delegates]
    return obj("VirtualService", "root", {"hosts": ["a"], "http": routes}, namespace)


def part(name: str, namespace: str = "default", **more: Any) -> ApiObject:
    route = {"name": name, "route": [{"destination": {"host": "b"}}], "mirror": {"host": "copy"}}
    return obj("VirtualService", name, {"http": [route], **more}, namespace)


def names_of(item: ApiObject, *others: ApiObject) -> list[str | None]:
    return [http.name for http in http_routes(mesh_of([item, *others]), item)]


def test_a_delegate_is_found_by_its_name_and_namespace() -> None:
    item = root({"name": "near"}, {"name": "far", "namespace": "other"})
    assert delegates_of(item) == (
        ObjectKey("VirtualService", "default", "near"),
        ObjectKey("VirtualService", "other", "far"),
    )
    assert names_of(item, part("near"), part("far", "other")) == ["before", "near", "far"]


def test_hosts_in_a_delegate_are_of_its_own_namespace() -> None:
    item = root({"name": "far", "namespace": "other"})
    found = http_routes(mesh_of([item, part("far", "other")]), item)[-1]
    assert found.route[0].destination.host == "b.other.svc.cluster.local"
    assert found.mirror is not None
    assert found.mirror.host == "copy.other.svc.cluster.local"


def test_what_cannot_be_delegated_to_is_left_out_alone() -> None:
    item = root({"name": "none"}, {"name": "hidden", "namespace": "other"}, {"name": "whole"}, {"name": "near"})
    hidden = part("hidden", "other", exportTo=["."])
    whole = part("whole", hosts=["c"])
    assert names_of(item, hidden, whole, part("near")) == ["before", "near"]


def test_a_delegate_may_be_exported_to_the_roots_namespace() -> None:
    item = root({"name": "far", "namespace": "other"})
    assert names_of(item, part("far", "other", exportTo=["default"])) == ["before", "far"]
