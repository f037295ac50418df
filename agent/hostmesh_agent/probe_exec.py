"""The process that becomes a probe's command, as a user without rights: standard library only, as it is started often.

    python -I -S probe_exec.py UID GID COMMAND [ARGUMENT ...]

The agent cannot change the user while it forks: gRPC's threads do not survive a fork, and one in a few would crash.
"""

import os
import resource
import sys


def main() -> None:
    user, group, *command = sys.argv[1:]
    # Before rights are given up: Python's own files may be out of reach afterwards, and os.execvp loads more of them.
    directories = [""] if "/" in command[0] else os.get_exec_path()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(int(group), int(group), int(group))
        os.setresuid(int(user), int(user), int(user))
    # What a shell says of a command that is not there, or that it may not run.
    code = 127
    for directory in directories:
        try:
            os.execv(os.path.join(directory, command[0]), command)  # noqa: PTH118, S606 - pathlib starts slowly; no shell wanted
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            code = 126
    sys.exit(code)


if __name__ == "__main__":
    main()
