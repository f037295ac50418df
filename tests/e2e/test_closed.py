"""On a host with a real agent and a real Envoy, other users reach neither keys nor sockets."""

import pytest

from e2e.driver import Lab

SOCKETS = ("/var/lib/hostmesh/envoy/admin.sock", "/run/hostmesh/xds.sock", "/run/hostmesh/agent.sock")
FILES = ("/var/lib/hostmesh/host.json", "/var/lib/hostmesh/identity/key.pem", "/var/lib/hostmesh/cache")
ENVOYS = ("/var/lib/hostmesh/envoy/certs/host/svid.pem",)

AS_ENVOY = """
import os, pwd
envoy = pwd.getpwnam("hostmesh-envoy")
os.setgroups([])
os.setresgid(envoy.pw_gid, envoy.pw_gid, envoy.pw_gid)
os.setresuid(envoy.pw_uid, envoy.pw_uid, envoy.pw_uid)
"""
TRY = """
import os, socket, sys
def tried(path):
    try:
        if path.endswith(".sock"):
            socket.socket(socket.AF_UNIX).connect(path)
        elif os.path.isdir(path):
            os.listdir(path)
        else:
            open(path).close()
    except PermissionError:
        return "refused"
    except FileNotFoundError:
        return "absent"
    return "reached"
print(*map(tried, sys.argv[1:]))
"""


def tried(lab: Lab, user: str, *paths: str) -> list[str]:
    return lab.exec("server", "python3", "-c", TRY, *paths, user=user).stdout.split()


def test_a_program_reaches_none_of_the_agents_sockets_and_reads_none_of_its_keys(mesh: Lab) -> None:
    paths = (*SOCKETS, *FILES, *ENVOYS)
    assert tried(mesh, "root", *paths) == ["reached"] * len(paths)
    assert tried(mesh, "app", *paths) == ["refused"] * len(paths)


def test_envoys_user_reaches_its_own_and_not_the_agents(mesh: Lab) -> None:
    own = ("/run/hostmesh/xds.sock", *ENVOYS)
    paths = (*own, "/run/hostmesh/agent.sock", *FILES)
    found = mesh.exec("server", "python3", "-c", AS_ENVOY + TRY, *paths).stdout.split()
    assert found == ["reached"] * len(own) + ["refused"] * (1 + len(FILES))


@pytest.mark.parametrize("path", ["/var/lib/hostmesh", "/run/hostmesh"])
def test_nothing_of_the_agents_can_be_written_by_others(mesh: Lab, path: str) -> None:
    # The Workload API's socket is for everybody; Envoy's group writes its log and, sticky, in Envoy's directory.
    mine = ["-not", "-name", "workload.sock", "-not", "-path", "*/envoy/envoy.log", "-not", "-path", "*/hostmesh/envoy"]
    found = mesh.exec("server", "find", path, "-not", "-type", "l", *mine, "-perm", "/022").stdout
    assert found == ""
