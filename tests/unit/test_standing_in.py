"""Root's verbs on a host whose agent is not root: they work in the agent's directories as the agent's user."""

import os
import pwd
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hostmesh_agent import launch, standing_in
from others import let_in

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of the agent's user."""
    monkeypatch.setattr(standing_in, "USER", "nobody")
    let_in(tmp_path)
    made = tmp_path / "state"
    made.mkdir(mode=0o711)
    os.chown(made, NOBODY.pw_uid, NOBODY.pw_gid)
    return made


def in_another(act: Callable[[], bool]) -> bool:
    """Whether it is true in a process of its own."""
    child = os.fork()
    if not child:
        try:
            os._exit(0 if act() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def denied(act: Callable[[], object]) -> bool:
    try:
        act()
    except PermissionError:
        return True
    return False


def test_a_verb_becomes_the_agent_for_good_and_cannot_write_what_is_others(state: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    (state / "link").symlink_to(secret)

    def act() -> bool:
        became = standing_in.become(state)
        (state / "file").write_text("")
        kept = {2, launch.NET_ADMIN, 19}
        return (
            became
            and os.getresuid() == (NOBODY.pw_uid,) * 3
            and os.getresgid() == (NOBODY.pw_gid,) * 3
            and {each for each in range(32) if launch.permitted() & 1 << each} <= kept
            # What root calls it with is read; nothing of another's is written, by whatever way.
            and secret.read_text() == "root's"
            and denied(lambda: secret.write_text("x"))
            and denied(lambda: (state / "link").write_text("x"))
            and denied(lambda: os.chown(secret, NOBODY.pw_uid, -1))
            and denied(lambda: os.setuid(0))
            and subprocess.run(["sh", "-c", f"echo x > {secret}"], stderr=subprocess.DEVNULL).returncode != 0
        )

    assert in_another(act)
    assert secret.read_text() == "root's"
    assert (state / "file").stat().st_uid == NOBODY.pw_uid


def test_for_a_while_it_is_the_agent_and_then_root_again(state: Path, tmp_path: Path) -> None:
    (tmp_path / "roots").write_text("")
    (tmp_path / "roots").chmod(0o600)
    (state / "link").symlink_to(tmp_path / "roots")

    def act() -> bool:
        groups = os.getgroups()
        with standing_in.for_a_while(state):
            (state / "file").write_text("")
            refused = denied((state / "link").read_text)
        return refused and os.geteuid() == 0 and os.getgroups() == groups and (state / "link").read_text() == ""

    assert in_another(act)
    assert (state / "file").stat().st_uid == NOBODY.pw_uid


def test_for_a_while_it_is_able_to_what_it_is_otherwise_and_has_all_again(state: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)

    def capabilities() -> list[str]:
        lines = Path("/proc/thread-self/status").read_text().splitlines()
        return [line for line in lines if line.startswith(("CapEff", "CapPrm", "CapInh"))]

    def act() -> bool:
        before = capabilities()
        with standing_in.for_a_while(state, able=True):
            (effective,) = (int(line.split()[1], 16) for line in capabilities() if line.startswith("CapEff"))
            able = {each for each in range(64) if effective & 1 << each} == {2, launch.NET_ADMIN, 19}
            reads = secret.read_text() == "root's" and denied(lambda: secret.write_text("x"))
        return able and reads and capabilities() == before

    assert in_another(act)


def test_nothing_changes_where_the_agent_is_root_or_somebody_else_s(state: Path, tmp_path: Path) -> None:
    assert not standing_in.become(tmp_path / "none")
    os.chown(state, 0, 0)
    assert not standing_in.become(state)
    os.chown(state, 64001, 64001)
    assert not standing_in.become(state)
    assert os.geteuid() == 0
