"""Every call that the golden cases are about can be explained, by the resources that they expect."""

import pytest

from golden.test_golden import CASES, mesh_of_case
from hostmesh_controller.explain import Call, explain
from hostmesh_controller.mesh.visibility import view

OUTSIDE = "93.184.216.34"


@pytest.mark.parametrize("case", CASES)
def test_every_call_is_explained_and_leads_to_clusters_that_there_are(case: str) -> None:
    mesh = mesh_of_case(case)
    for host in mesh.hosts:
        for service in view(mesh, mesh.viewer_of(host)).services:
            name = service.id.hostname.replace("*", "any")
            for port in service.ports:
                for scheme in ("http", "grpc", "tls", "tcp"):
                    story = explain(mesh, host, Call(scheme, name, port.number, address=OUTSIDE))
                    assert story.steps[0].stage == "name"
                    missing = [step.what for step in story.steps if step.why == "there is no such cluster"]
                    assert not missing, (host, name, port, scheme)
