"""Every fault, in the order of the table."""

from typing import Final

from faults.fault import Fault
from faults.suite.agents import AGENTS
from faults.suite.controllers import CONTROLLERS
from faults.suite.envoys import ENVOYS
from faults.suite.networks import NETWORKS
from faults.suite.rulesets import RULESETS

FAULTS: Final[tuple[Fault, ...]] = (*AGENTS, *ENVOYS, *CONTROLLERS, *NETWORKS, *RULESETS)
