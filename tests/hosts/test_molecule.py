"""Molecule's scenario of the collection, on two real hosts: `make molecule`."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from shutil import rmtree

import pytest

from e2e.driver import Lab
from hosts.fleet import COLLECTION, Fleet, why_no_ansible
from hosts.machine import Machine
from hosts.repository import Repository

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]


@pytest.fixture
def fleet(lab: Lab, packages: Repository) -> Iterator[Fleet]:
    if why := why_no_ansible():
        pytest.skip(why)
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="hm-mol-"))
        stack.callback(rmtree, directory)
        ruler = Machine(lab, "controller", "bookworm", 96, directory / "controller")
        made = Fleet(lab, directory, packages, ruler, (Machine(lab, "host1", "trixie", 97, directory / "host1"),))
        stack.callback(made.remove)
        made.boot()
        yield made


def test_the_scenario_of_molecule_passes(fleet: Fleet) -> None:
    done, _ = fleet.control(
        "molecule",
        "test",
        cwd=COLLECTION / "extensions",
        HOSTMESH_INVENTORY=str(fleet.inventory),
        HOSTMESH_COLLECTIONS=str(COLLECTION / ".checkout"),
        MOLECULE_EPHEMERAL_DIRECTORY=str(fleet.directory / "molecule"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
