"""Whose the agent's files are: given to the user that it runs as before it starts, whoever it was before.

Root runs this on directories in which a user without rights may write, and might have put anything:

    python -I -S ownership.py USER DIRECTORY ...

So everything goes by open directories and follows no link; and a file is given only if it was root's or the agent's,
has no other name, and lies on the directory's own file system. Certificates that a root agent gave to Envoy's user
become the agent's, for Envoy's group to read, and Envoy's again where the agent is root. What Envoy made itself stays.
"""

import os
import pwd
import stat
import sys
from dataclasses import dataclass
from typing import Final

AGENT: Final = "hostmesh-agent"
ENVOY: Final = "hostmesh-envoy"
CERTIFICATES: Final = "certs"
_ITSELF: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_DIRECTORY: Final = _ITSELF | os.O_DIRECTORY
_MODE: Final = 0o711


@dataclass(frozen=True, slots=True)
class Giving:
    """To whom (`uid`, `gid`), from whom (`before`), and who Envoy is."""

    uid: int
    gid: int
    before: frozenset[int]
    envoy_uid: int
    envoy_gid: int

    def below(self, path: str) -> int:
        """Give a directory and all below it; return how much was given. One that is not there is made."""
        try:
            os.mkdir(path, _MODE)  # noqa: PTH102 - pathlib starts slowly
            os.chmod(path, _MODE)  # noqa: PTH101 - as above
        except FileExistsError:
            pass
        top = os.open(path, _DIRECTORY)
        try:
            return self._walk(top, os.fstat(top).st_dev, certificates=False)
        finally:
            os.close(top)

    def _walk(self, directory: int, device: int, *, certificates: bool) -> int:
        given = 0
        with os.scandir(directory) as entries:
            found = [(each.name, each.stat(follow_symlinks=False)) for each in entries]
        for name, status in found:
            if status.st_dev == device:
                given += self._entry(directory, name, status, certificates=certificates)
        # Last: from then on its owner may change what is in it.
        return given + self._hand(directory, certificates=certificates)

    def _entry(self, directory: int, name: str, status: os.stat_result, *, certificates: bool) -> int:
        if stat.S_ISLNK(status.st_mode):
            if status.st_uid not in self.before:
                return 0
            os.chown(name, self.uid, -1, dir_fd=directory, follow_symlinks=False)
            return 1
        if stat.S_ISSOCK(status.st_mode):
            return self._open_to_group(directory, name)
        is_directory = stat.S_ISDIR(status.st_mode)
        if not (is_directory or stat.S_ISREG(status.st_mode)):
            return 0
        try:
            opened = os.open(name, _DIRECTORY if is_directory else _ITSELF, dir_fd=directory)
        except OSError:
            return 0  # it went meanwhile, or is something else now
        try:
            if not is_directory:
                return self._hand(opened, certificates=certificates)
            return self._walk(opened, status.st_dev, certificates=certificates or name == CERTIFICATES)
        finally:
            os.close(opened)

    def _open_to_group(self, directory: int, name: str) -> int:
        """Let the agent connect to what Envoy serves, by Envoy's group."""
        if not self.uid:
            return 0
        opened = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            status = os.fstat(opened)
            wanted = stat.S_ISSOCK(status.st_mode) and (status.st_uid, status.st_gid) == (
                self.envoy_uid,
                self.envoy_gid,
            )
            if not wanted or status.st_mode & 0o060 == 0o060:
                return 0
            # By the descriptor: of another name nothing is changed.
            os.chmod(f"/proc/self/fd/{opened}", stat.S_IMODE(status.st_mode) | 0o060)  # noqa: PTH101 - as above
            return 1
        finally:
            os.close(opened)

    def _hand(self, opened: int, *, certificates: bool) -> int:
        status = os.fstat(opened)
        if stat.S_ISREG(status.st_mode) and status.st_nlink != 1:
            return 0  # another name of it may be anywhere
        if certificates and status.st_uid == self.envoy_uid and self.uid:
            mode = stat.S_IMODE(status.st_mode) & 0o700
            # In this order Envoy can read it all the time.
            os.fchmod(opened, mode | (mode & 0o500) >> 3)
            os.fchown(opened, self.uid, self.envoy_gid)
            return 1
        if status.st_uid not in self.before:
            return 0
        if certificates and not self.uid:
            os.fchown(opened, self.envoy_uid, self.envoy_gid)
            os.fchmod(opened, stat.S_IMODE(status.st_mode) & 0o700)
            return 1
        os.fchown(opened, self.uid, -1 if status.st_gid == self.envoy_gid else self.gid)
        return 1


def main(arguments: list[str]) -> None:
    user, *directories = arguments
    try:
        to, agent, envoy = (pwd.getpwnam(each) for each in (user, AGENT, ENVOY))
    except KeyError as error:
        sys.exit(f"{error.args[0]}: the package makes it (systemd-sysusers hostmesh.conf)")
    giving = Giving(to.pw_uid, to.pw_gid, frozenset({0, agent.pw_uid} - {to.pw_uid}), envoy.pw_uid, envoy.pw_gid)
    for each in directories:
        given = giving.below(each)
        if given:
            print(f"{each}: {given} files are {user}'s now")


if __name__ == "__main__":
    main(sys.argv[1:])
