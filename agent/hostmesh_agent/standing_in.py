"""A verb that root calls on a host whose agent is not root: it stands in for the agent, as the agent's user.

Root that works in another user's directories can be led anywhere by links. So it becomes that user before it touches
them, and keeps no right to write what is another's.
"""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hostmesh_agent import launch

USER: Final = "hostmesh-agent"
# linux/capability.h
_DAC_READ_SEARCH: Final = 2
_SYS_PTRACE: Final = 19
_KEPT: Final = (launch.NET_ADMIN, _DAC_READ_SEARCH, _SYS_PTRACE)
"""The kernel's rules; reading what the caller names (keys of the host by which it joins); whose sockets are whose."""


def agents_account(state_dir: Path) -> pwd.struct_passwd | None:
    """Return the user that the agent of this host runs as; None if it is ours, or there is none of its own."""
    try:
        owner = state_dir.lstat().st_uid
        account = pwd.getpwnam(USER)
    except (FileNotFoundError, KeyError):
        return None
    return account if owner == account.pw_uid != os.geteuid() == 0 else None


def become(state_dir: Path) -> bool:
    """Become the agent's user for good, where we are root and it is not; return whether that was done."""
    account = agents_account(state_dir)
    if account is None:
        return False
    groups = os.getgrouplist(account.pw_name, account.pw_gid)
    launch.become(account.pw_uid, account.pw_gid, groups, list(_KEPT))
    return True


@contextmanager
def for_a_while(state_dir: Path, *, able: bool = False) -> Iterator[None]:
    """Touch the agent's files as its user, and be root again afterwards. Not for two threads at once.

    `able`: with what it keeps by `become`, in this thread and in those that it starts.
    """
    account = agents_account(state_dir)
    if account is None:
        yield
        return
    groups = os.getgroups()
    os.setgroups(os.getgrouplist(account.pw_name, account.pw_gid))
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    if able:
        launch.use(_KEPT)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
