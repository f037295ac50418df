"""Where a controller listens by default: at every address, of the families that the kernel has."""

import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from netns.space import new_space
from running_controller import START_S, wait_ready

RUN = "from hostmesh_controller.serve import main; main()"
SOCKET = {"x86_64": 41, "aarch64": 198}.get(platform.machine(), 0)
WITHOUT_IPV6 = f"""
import ctypes, struct
# As with ipv6.disable=1: socket(AF_INET6, ...) fails with EAFNOSUPPORT, by seccomp(2).
steps = [(0x20, 0, 0, 0), (0x15, 0, 3, {SOCKET}), (0x20, 0, 0, 16), (0x15, 0, 1, 10), (6, 0, 0, 0x50000 | 97),
         (6, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in steps))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("@HxxxxxxP", len(steps), ctypes.addressof(program)), 0, 0) == 0
"""


@pytest.mark.parametrize("families", ["both", "IPv4 alone"])
def test_a_controller_is_called_at_every_address(families: str, tmp_path: Path) -> None:
    if families != "both" and not SOCKET:
        pytest.skip("the number of this machine's socket(2) is not known")
    config, log = tmp_path / "controller.toml", tmp_path / "log"
    config.write_text(f'state_dir = "{tmp_path}/state"\n')
    program = RUN if families == "both" else WITHOUT_IPV6 + RUN
    with new_space() as space, space(), log.open("wb") as output:
        command = [sys.executable, "-c", program, "run", "--config", str(config)]
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            wait_ready(process, log)
            for port in (15012, 15013):
                socket.create_connection(("127.0.0.1", port), timeout=START_S).close()
                if families == "both":
                    socket.create_connection(("::1", port), timeout=START_S).close()
                else:
                    with pytest.raises(ConnectionRefusedError):
                        socket.create_connection(("::1", port), timeout=START_S)
        finally:
            process.kill()
            process.wait(START_S)
