"""What the agent may take of a host. The unit enforces it, the benchmark measures against it, the alarms are set by it.

CPU       50 % of a core at most (with less, a start takes longer: 1.4 s, but 4.1 s with 20 %), 0.2 % at idle
memory    64 MB resident at idle, 192 MB at most: with a cold copy of a large mesh, and during its key work
files     4,096 open ones; an idle agent has about 40
"""

from typing import Final

IDLE_CPU_PERCENT: Final = 0.2
MAX_CPU_PERCENT: Final = 50
IDLE_RSS_BYTES: Final = 64 << 20
MAX_MEMORY_BYTES: Final = 192 << 20
MAX_FILES: Final = 4096
ENOUGH_FILES: Final = 256
"""Below it an agent cannot serve a host with many probes; it goes on, with an alarm."""
