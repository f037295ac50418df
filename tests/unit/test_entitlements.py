"""Who may have which identity of the Workload API, and who is at the other end of a socket."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hostmesh_agent.entitlements import Caller, WorkloadAccess, entitled, strangers, unit_of
from hostmesh_agent.peer import caller_of
from hostmesh_api.identity import WorkloadIdentity

REVIEWS = WorkloadIdentity("cluster.local", "shop", "reviews")
RATINGS = WorkloadIdentity("cluster.local", "shop", "ratings")
BOTH = (RATINGS, REVIEWS)
ACCESS = (
    WorkloadAccess("shop", "reviews", users=("reviews",), units=frozenset({"reviews.service"})),
    WorkloadAccess("shop", "ratings", uids=frozenset({1002})),
)
UIDS = {"reviews": 1001}


@pytest.mark.parametrize(
    ("caller", "allowed"),
    [
        (Caller(1001, 7, ""), (REVIEWS,)),
        (Caller(1002, 7, ""), (RATINGS,)),
        (Caller(1002, 7, "reviews.service"), BOTH),
        (Caller(1003, 7, "reviews.service"), (REVIEWS,)),
        (Caller(1003, 7, "other.service"), ()),
        (Caller(1003, 7, ""), ()),
        (Caller(0, 7, ""), BOTH),
    ],
)
def test_a_caller_gets_what_the_hosts_owner_allows_to_its_user_or_unit(
    caller: Caller, allowed: tuple[WorkloadIdentity, ...]
) -> None:
    assert entitled(caller, BOTH, ACCESS, UIDS) == allowed


def test_what_the_mesh_does_not_place_on_the_host_nobody_gets() -> None:
    assert entitled(Caller(1001, 7, ""), (RATINGS,), ACCESS, UIDS) == ()
    assert strangers((RATINGS,), ACCESS) == ("shop/reviews",)


def test_a_user_that_does_not_exist_is_nobody() -> None:
    assert entitled(Caller(1001, 7, ""), BOTH, ACCESS, {}) == ()


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/reviews.service\n", "reviews.service"),
        ("0::/shop.slice/shop-web.slice/reviews@2.service/worker\n", "reviews@2.service"),
        ("1:name=systemd:/system.slice/reviews.service\n0::/\n", "reviews.service"),
        # A user's own manager may call its units and groups as it likes.
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/reviews.service\n", "user@1000.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope/reviews.service\n", "session-3.scope"),
        ("0::/mine/reviews.service\n", ""),
        ("0::/../../system.slice/reviews.service\n", ""),
        ("0::/\n", ""),
        ("4:memory:/system.slice/reviews.service\n", ""),
        ("", ""),
    ],
)
def test_the_unit_is_the_first_name_below_the_slices(cgroup: str, unit: str) -> None:
    assert unit_of(cgroup) == unit


def fake_proc(directory: Path, pid: int) -> Path:
    (directory / str(pid)).mkdir()
    (directory / str(pid) / "cgroup").write_text("0::/system.slice/reviews.service\n")
    return directory


def test_the_kernel_says_who_connected(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        caller = caller_of(ours, fake_proc(tmp_path, os.getpid()))
    assert (caller.uid, caller.pid) == (os.geteuid(), os.getpid())
    # Linux 6.5 and later can tell it for sure; what cannot be told is no unit.
    assert caller.unit in {"reviews.service", ""}


def test_a_process_that_has_ended_is_in_no_unit(tmp_path: Path) -> None:
    """Its number may be that of another process by now."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        program = f"import os, socket; s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); print(os.getpid())"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
        connection, _ = listener.accept()
        with connection:
            caller = caller_of(connection, fake_proc(tmp_path, int(done.stdout)))
    assert caller == Caller(os.geteuid(), int(done.stdout), "")
