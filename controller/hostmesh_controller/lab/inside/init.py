"""What process number 1 of a namespace owes: reap, and end everything when told."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path


def ip_batch(lines: list[str]) -> None:
    """Run iproute2 on several lines at once; the first one refused raises `OSError` with iproute2's own words."""
    done = subprocess.run(
        ["ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise OSError(f"ip: {done.stderr.strip() or done.stdout.strip()}")


def set_sysctl(name: str, value: str) -> None:
    """Set a kernel setting of this network namespace, when this kernel has it."""
    path = Path("/proc/sys") / name.replace(".", "/")
    if path.exists():
        path.write_text(value)


def begin() -> None:
    """Keep signals pending until `serve` takes them: process 1 has no default actions. The caller's umask ends here."""
    os.umask(0o022)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT})


def serve(grace_s: float) -> None:
    """Reap until told to end by SIGTERM, pass that on to everyone, and return when they ended or `grace_s` is over."""
    wanted = {signal.SIGCHLD, signal.SIGTERM}
    while signal.sigwait(wanted) != signal.SIGTERM:
        _reap()
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while _reap() and (left := deadline - time.monotonic()) > 0:
        signal.sigtimedwait({signal.SIGCHLD}, min(left, 1.0))


def _reap() -> bool:
    """Collect what has ended; True while there are children left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True
