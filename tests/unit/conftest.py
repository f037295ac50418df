"""What several tests of enrolment start; a module that means something else by these names has its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hostmesh_agent.state import State
from identity_servers import Controller


@pytest.fixture
async def controller(tmp_path: Path) -> AsyncIterator[Controller]:
    """The controller's identity services."""
    async with Controller(tmp_path / "controller").serving() as serving:
        yield serving


@pytest.fixture
def state(tmp_path: Path) -> State:
    """What an agent that has not joined has on disk."""
    return State(tmp_path / "agent")
