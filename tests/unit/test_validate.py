"""Objects that are fine by themselves and do not fit each other: what is told, and in which words."""

from checking import codes, problems, read, service
from hostmesh_controller.checks.world import World, world_of
from hostmesh_controller.cli.failure import problem_line
from hostmesh_controller.model import ApiObject, ObjectKey
from hostmesh_controller.review import problem_body, review
from hostmesh_controller.review import read as reading
from hostmesh_controller.validate import validate

HOST = "apiVersion: hostmesh.io/v1\nkind: Host\nmetadata: {name: h1}\nspec: {addresses: [10.0.0.1, 10.0.0.1]}\n"
ROUTES = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: r}
spec:
  hosts: [reviews]
  http:
  - route: [{destination: {host: reviews.default.svc.mesh.internal}}]
"""


def test_findings_of_objects_without_a_file_name_the_object() -> None:
    [made] = read(HOST)
    [problem] = validate([ApiObject(made.key, made.api_version, made.metadata, made.spec)], World())
    assert str(problem) == "Host h1: spec.addresses[1]: address 10.0.0.1 is there twice"
    assert problem.key == ObjectKey("Host", "", "h1")
    assert problem.is_error


def test_another_domain_makes_other_full_names() -> None:
    [made] = read(ROUTES)
    assert validate([made], world_of(read(service("reviews")), "mesh.internal")) == []
    assert len(validate([made], world_of(read(service("reviews"))))) == 1


def test_a_problem_has_its_place_and_both_codes() -> None:
    [problem] = problems(ROUTES)
    body = problem_body(problem)
    assert body.pop("message") == "no Service or ServiceEntry defines 'reviews.default.svc.mesh.internal'"
    assert body == {
        "file": "f.yaml",
        "line": 7,
        "column": 28,
        "path": "spec.http[0].route[0].destination.host",
        "code": "unknown-host",
        "istio_code": "IST0101",
        "severity": "warning",
    }
    assert problem_line(problem_body(problem)) == (
        "f.yaml:7:28: warning: spec.http[0].route[0].destination.host: no Service or ServiceEntry defines "
        "'reviews.default.svc.mesh.internal' [IST0101 unknown-host]"
    )


def test_an_error_is_printed_without_a_word_for_it_and_an_info_with() -> None:
    [error] = problems(HOST)
    assert problem_line(problem_body(error)) == (
        "f.yaml:4:30: spec.addresses[1]: address 10.0.0.1 is there twice [duplicate-address]"
    )
    [info] = problems(service("a", "{name: web, port: 80}"))
    assert problem_line(problem_body(info)).startswith("f.yaml:4:37: info: spec.ports[0].name: ")


def test_only_what_is_applied_is_reported_on() -> None:
    assert codes(service("b"), ROUTES + "---\n" + HOST) == []


def test_a_folder_may_hold_alternatives_of_one_object() -> None:
    bad = ROUTES.replace("reviews.default.svc.mesh.internal", "reviews")
    documents = reading([("a.yaml", ROUTES), ("b.yaml", bad)], "default")
    refused, told = review(documents, World()), review(documents, World(), alternatives=True)
    assert [str(each) for each in refused.errors] == [
        "b.yaml:3: metadata.name: VirtualService default/r is already in a.yaml:3; remove one of the two"
    ]
    assert told.errors == ()
    assert "VirtualService default/r is already in a.yaml:3; apply one of the two" in told.warnings[0].message
    # Each of them is looked at.
    assert [each.file for each in told.warnings if each.code == "unknown-host"] == ["a.yaml", "b.yaml"]
    once = reading([("a.yaml", ROUTES + "---\n" + bad)], "default")
    assert [each.code for each in review(once, World(), alternatives=True).errors] == ["duplicate"]
