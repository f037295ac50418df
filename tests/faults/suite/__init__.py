"""Every fault, in the order of the table."""

from typing import Final

from faults.fault import Fault
from faults.suite.agents import AGENTS
from faults.suite.controllers import CONTROLLERS
from faults.suite.envoys import ENVOYS

FAULTS: Final[tuple[Fault, ...]] = (*AGENTS, *ENVOYS, *CONTROLLERS)
