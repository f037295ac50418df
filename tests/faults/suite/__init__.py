"""Every fault, in the order of the table."""

from typing import Final

from faults.fault import Fault
from faults.suite.agents import AGENTS
from faults.suite.changes import CHANGES
from faults.suite.clocks import CLOCKS
from faults.suite.configs import CONFIGS
from faults.suite.controllers import CONTROLLERS
from faults.suite.envoys import ENVOYS
from faults.suite.exhaustive import EXHAUSTIVE
from faults.suite.networks import NETWORKS
from faults.suite.orders import ORDERS
from faults.suite.rulesets import RULESETS
from faults.suite.states import STATES
from faults.suite.upgrades import UPGRADES

FAULTS: Final[tuple[Fault, ...]] = (
    *AGENTS, *ENVOYS, *UPGRADES, *CONTROLLERS, *CONFIGS, *NETWORKS, *RULESETS, *STATES, *CLOCKS, *ORDERS,
    *CHANGES, *EXHAUSTIVE,
)  # fmt: skip
