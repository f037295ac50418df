"""The process that `keyroom` starts: answers what it is asked on stdin, and ends when it is asked no more."""

import pickle
import select
import sys
from typing import Final

from hostmesh_agent import keys
from hostmesh_agent.svid import SvidError

LINGER_S: Final = 2.0
"""Work comes in bursts: a start checks each certificate, a new one is a request and a check."""


def serve() -> None:
    """Answer one question after the other, until nobody asks for a while or the agent is gone."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    while select.select([stdin], [], [], LINGER_S)[0]:
        try:
            function, arguments = pickle.load(stdin)  # noqa: S301 - from our own parent
        except EOFError:
            return
        try:
            answer = (True, getattr(keys, function)(*arguments))
        except SvidError as error:
            answer = (False, error)
        pickle.dump(answer, stdout)
        stdout.flush()


if __name__ == "__main__":
    serve()
