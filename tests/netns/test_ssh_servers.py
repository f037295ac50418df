"""Who counts as an SSH server: where one listens nothing is captured, so no program may say so of itself."""

import json
import os
import sys
from typing import Final

import pytest

from netns.space import Space, run

_LISTENS: Final = """
import ctypes, json, os, socket, sys
from hostmesh_agent.capture import floor
ready, tell = os.pipe()
held, end = os.pipe()
child = os.fork()
if not child:
    os.close(end)
    os.setgid(int(sys.argv[1])), os.setuid(int(sys.argv[1]))
    ctypes.CDLL(None).prctl(15, sys.argv[2].encode())  # PR_SET_NAME
    listener = socket.create_server(("0.0.0.0", 8080))
    os.write(tell, b"x")
    os.read(held, 1)
    os._exit(0)
os.read(ready, 1)
print(json.dumps(8080 in floor.ssh_servers()))
os.close(end)
os.waitpid(child, 0)
"""


@pytest.mark.parametrize(
    ("user", "name", "counts"),
    [(0, "sshd", True), (0, "sshd-session", True), (65534, "sshd", False), (0, "web", False)],
)
def test_an_ssh_server_is_roots(host: Space, user: int, name: str, counts: bool) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert json.loads(run(sys.executable, "-c", _LISTENS, str(user), name, environment=environment)) is counts
