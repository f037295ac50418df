"""How a verb of `hostmesh-agent` ends: its exit code, and one line for whoever called it."""

import sys
from typing import Final

DONE: Final = 0
FAILED: Final = 1
WRONG_CALL: Final = 2


def say(message: str, code: int) -> int:
    """Print a line on stderr and return the code."""
    print(f"hostmesh-agent: {message}", file=sys.stderr)
    return code
