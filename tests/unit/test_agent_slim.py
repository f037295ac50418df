"""What the running agent loads, and that what it leaves out is not missed."""

import json
import subprocess
import sys
from typing import Final

import pytest

_LOAD: Final = """
import json, sys
from hostmesh_agent import slim
slim.leave_out()
import hostmesh_agent.run
print(json.dumps(sorted(name for name, module in sys.modules.items() if module is not None)))
"""


def _python(program: str) -> str:
    """Run a program in an interpreter of its own: what this one has loaded would hide what is asked."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def loaded() -> frozenset[str]:
    return frozenset(json.loads(_python(_LOAD)))


@pytest.mark.parametrize(
    "module",
    [
        "ssl",
        "_hashlib",
        "cryptography",
        "http.client",
        "rich",
        "pygments",
        "pydantic",
        "unittest",
        "pyroute2.ndb.main",
        "pyroute2.iproute.linux",
        "pyroute2.netlink.rtnl.tcmsg",
        "pyroute2.netlink.rtnl.ifinfmsg",
        "envoy.config.route.v3.route_components_pb2",
        "hostmesh_controller",
    ],
)
def test_the_running_agent_does_not_load(module: str, loaded: frozenset[str]) -> None:
    assert module not in loaded


def test_the_digests_of_the_agent_are_the_same_without_openssl() -> None:
    program = "import hashlib; print(hashlib.sha256(b'x').hexdigest(), hashlib.blake2b(b'x').hexdigest())"
    assert _python(program) == _python(f"from hostmesh_agent import slim\nslim.leave_out()\n{program}")


def test_other_verbs_load_libraries_as_they_are() -> None:
    assert _python("import hostmesh_agent.cli, ssl, pyroute2; print(pyroute2.NDB.__name__)") == "NDB\n"


def test_what_is_loaded_at_the_start_is_not_searched_for_garbage_again() -> None:
    program = (
        "from hostmesh_agent import slim\nslim.give_back()\nslim.settle()\nimport gc; print(len(gc.get_objects()))"
    )
    assert int(_python(program)) < 100
