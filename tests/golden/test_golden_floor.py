"""What the host's policy floor makes of every translation: it must not stand in the way of what the mesh promises."""

import pytest

from golden.test_golden import CASES, mesh_of_case
from hostmesh_agent.config import FloorSettings
from hostmesh_agent.policy_floor.floor import Floor
from hostmesh_agent.policy_floor.table import load
from hostmesh_controller.translation import reachable
from hostmesh_controller.xds.encoding import resource

TABLE = load()
SOCKETS = {"/run/program.sock", "/run/shop/out.sock", "/run/shop/tls.sock"}
"""What the cases have of unix sockets: the one thing that the owner of the host is asked for."""


@pytest.mark.parametrize("case", CASES)
def test_a_host_takes_every_translation_but_unix_sockets_that_its_owner_does_not_allow(case: str) -> None:
    usual = Floor(FloorSettings(), TABLE, frozenset)
    allowing = Floor(FloorSettings(unix_sockets=tuple(SOCKETS)), TABLE, frozenset)
    mesh = mesh_of_case(case)
    for host in mesh.hosts:
        for asked, message in reachable(mesh, host):
            if message is not None:
                found = resource(asked.name, message)
                why = usual.problem(asked.type_url, found)
                assert not why or any(repr(each) in why for each in SOCKETS), (asked.name, why)
                assert allowing.problem(asked.type_url, found) == ""
