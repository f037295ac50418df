"""One lab for all tests that only use it; tests that break one bring their own."""

import os
from collections.abc import Iterator
from typing import Final

import pytest

from e2e.driver import Lab, new_lab

AGENT_TOML: Final = "/etc/hostmesh/agent.toml"


@pytest.fixture(scope="session", autouse=True)
def _needs_root() -> None:
    if os.getuid() != 0:
        pytest.skip("labs in tests are made as root; an ordinary user's lab has its own test")


@pytest.fixture
def empty_lab() -> Iterator[Lab]:
    """A lab that has not been started; ended and checked to be gone whatever the test did."""
    with new_lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def mesh() -> Iterator[Lab]:
    """Client and server in the mesh, outside not; nothing is configured."""
    with new_lab() as lab:
        lab.verb("up", "client", "server", "--no-join", "outside")
        for host in ("client", "server"):
            # Tests delete all they made at once, again and again: the shrink guard has tests of its own.
            toml = lab.exec(host, "cat", AGENT_TOML).stdout
            lab.put(host, AGENT_TOML, f"{toml}\n[shrink]\naccept_after_s = 1\n")
            lab.verb("restart", f"agent/{host}")
        yield lab
