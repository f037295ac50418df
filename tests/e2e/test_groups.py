"""A pool of hosts joins as members of a WorkloadGroup, follows its template and its probe, under load."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.driver import PROGRAMS, Lab, eventually, new_lab
from e2e.test_under_load import load

MEMBERS = ("m1", "m2", "m3")
WELL = "/run/well"
"""A member is healthy as long as it has this file."""

POOL = """
apiVersion: v1
kind: Service
metadata: {{name: reviews}}
spec:
  selector: {{app: reviews}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: reviews}}
spec:
  host: reviews
  subsets:
    - {{name: v1, labels: {{version: v1}}}}
    - {{name: v2, labels: {{version: v2}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews}}
spec:
  hosts: [reviews]
  http:
    - match: [{{headers: {{want: {{exact: v2}}}}}}]
      route: [{{destination: {{host: reviews, subset: v2}}}}]
    - route: [{{destination: {{host: reviews}}}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {{name: reviews}}
spec:
  metadata: {{labels: {{app: reviews, version: {version}}}}}
  template: {{serviceAccount: reviews}}
  probe:
    periodSeconds: 1
    failureThreshold: 1
    timeoutSeconds: 5
    exec: {{command: [test, -e, {well}]}}
"""


def pool(version: str = "v1") -> str:
    return POOL.format(version=version, well=WELL)


def run_program(lab: Lab, host: str) -> None:
    lab.detach(host, "python3", str(PROGRAMS / "http_echo.py"), "8080", host, user="app")
    lab.exec(host, "touch", WELL)


def join(lab: Lab, host: str, join_string: str, *words: str, check: bool = True) -> str:
    done = lab.exec(host, "hostmesh-agent", "join", "-", *words, text_in=join_string + "\n", check=check)
    return done.stdout + done.stderr


def entry(lab: Lab, host: str) -> dict[str, Any]:
    done = lab.hostmesh("get", "workloadentry", f"reviews-{host}", "-n", "default", "-o", "json")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def answering(lab: Lab, *options: str) -> set[str]:
    """Return who answers some calls; "" stands for none."""
    answers = [lab.curl("client", "http://reviews/", *options) for _ in range(8)]
    return {each.json["name"] if each.status == 200 else "" for each in answers}


@pytest.fixture(scope="module")
def members() -> Iterator[Lab]:
    """A client, and three hosts that joined with one token."""
    with new_lab() as lab:
        lab.verb("up", "client", *(word for host in (*MEMBERS, "late") for word in ("--no-join", host)))
        lab.apply(pool())
        made = lab.hostmesh("token", "create", "--group", "default/reviews", "--max-joins", "3", "-o", "json")
        (lab.root.parent / "token").write_text(json.loads(made.stdout)["join_string"])
        for host in MEMBERS:
            assert f"joined as spiffe://cluster.local/host/{host}" in join(lab, host, token(lab))
            lab.verb("start", f"agent/{host}")
            run_program(lab, host)
        eventually(lambda: answering(lab) == set(MEMBERS), "every member serves", timeout_s=60)
        yield lab


def token(lab: Lab) -> str:
    return (lab.root.parent / "token").read_text()


def test_each_host_is_a_member_at_its_own_address_under_the_groups_identity(members: Lab) -> None:
    for host in MEMBERS:
        found = entry(members, host)
        assert found["metadata"]["annotations"]["istio.io/autoRegistrationGroup"] == "reviews"
        assert found["metadata"]["labels"] == {"app": "reviews", "version": "v1"}
        assert (found["spec"]["address"], found["spec"]["serviceAccount"]) == (members.ip(host), "reviews")
        seen = members.agent(host)["workloads"]
        assert [(each["name"], each["health"]) for each in seen] == [(f"reviews-{host}", "healthy")]


def test_a_token_lets_in_as_many_as_it_says_and_each_of_them_again(members: Lab) -> None:
    said = join(members, "late", token(members), check=False)
    assert "the join token is not accepted" in said
    members.verb("stop", "agent/m1")
    said = join(members, "m1", token(members), "--force")
    assert "joined as spiffe://cluster.local/host/m1" in said
    members.verb("start", "agent/m1")
    eventually(lambda: answering(members) == set(MEMBERS), "m1 serves again", timeout_s=30)


def test_a_name_and_an_address_that_are_not_ones_own_are_refused(members: Lab) -> None:
    made = members.hostmesh("token", "create", "--group", "default/reviews", "-o", "json")
    text = json.loads(made.stdout)["join_string"]
    assert "is registered, not as a member" in join(members, "late", text, "--name", "client", check=False)
    assert "is a member at" in join(members, "late", text, "--name", "m1", check=False)
    said = join(members, "late", text, "--address", members.ip("m1"), check=False)
    assert "does not allow the address" in said


def test_a_change_of_the_group_reaches_its_members_and_the_subsets_they_are_in(members: Lab) -> None:
    assert answering(members, "-H", "want: v2") == {""}
    with load(members, "client", "http://reviews/") as tally:
        members.apply(pool("v2"))
        eventually(lambda: answering(members, "-H", "want: v2") == set(MEMBERS), "all are v2")
    assert entry(members, "m2")["metadata"]["labels"]["version"] == "v2"
    assert tally["failed"] == 0, tally
    done = members.hostmesh("apply", "-f", "-", text_in=json.dumps(_edited(entry(members, "m2"))), check=False)
    assert "edit the group, and all its members follow" in done.stderr
    done = members.hostmesh("delete", "workloadgroup", "reviews", "-n", "default", check=False)
    assert "it has members: m1, m2, m3" in done.stderr


def _edited(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "spec": {**document["spec"], "weight": 7}}


def test_a_member_whose_probe_fails_is_called_no_more_until_it_succeeds(members: Lab) -> None:
    with load(members, "client", "http://reviews/") as tally:
        for _ in range(2):
            members.exec("m2", "rm", WELL)
            eventually(lambda: answering(members) == {"m1", "m3"}, "m2 is out", timeout_s=30)
            assert "test ended with code 1" in members.agent("m2")["workloads"][0]["health_reason"]
            members.exec("m2", "touch", WELL)
            eventually(lambda: answering(members) == set(MEMBERS), "m2 is back", timeout_s=30)
    assert tally["sent"] > 300
    assert tally["failed"] == 0, tally


def test_a_member_keeps_its_place_through_restarts_of_its_agent_and_of_the_controller(members: Lab) -> None:
    with load(members, "client", "http://reviews/") as tally:
        members.verb("kill", "agent/m3")
        members.verb("stop", "controller")
        members.verb("start", "controller")
        members.verb("start", "agent/m3")
        eventually(lambda: members.agent("m3")["workloads"][0]["health"] == "healthy", "m3 is judged")
        eventually(lambda: answering(members) == set(MEMBERS), "every member serves", timeout_s=30)
    assert tally["failed"] == 0, tally


def test_a_member_that_boots_is_called_once_its_program_is_well(members: Lab) -> None:
    members.verb("restart", "host/m3")
    eventually(lambda: answering(members) == {"m1", "m2"}, "m3 is out", timeout_s=60)
    assert members.agent("m3")["workloads"][0]["health"] == "unhealthy"
    run_program(members, "m3")
    eventually(lambda: answering(members) == set(MEMBERS), "m3 is back", timeout_s=60)


def test_a_member_that_leaves_takes_its_entry_along(members: Lab) -> None:
    members.exec("m3", "hostmesh-agent", "leave")
    members.hostmesh("host", "remove", "m2", "--yes")
    left = members.hostmesh("get", "workloadentry", "-n", "default", "-o", "json").stdout
    assert "reviews-m1" in left
    assert "reviews-m2" not in left
    assert "reviews-m3" not in left
    eventually(lambda: answering(members) == {"m1"}, "m1 is alone")
    members.hostmesh("host", "remove", "m1", "--yes")
    assert members.hostmesh("delete", "workloadgroup", "reviews", "-n", "default").returncode == 0
