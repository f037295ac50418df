"""Keeps one connection: tells each line that comes, and when it ends; says each line of its own input."""

import socket
import sys
import threading


def main() -> None:
    connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)
    connection.settimeout(None)
    threading.Thread(target=_say, args=(connection,), daemon=True).start()
    try:
        for line in connection.makefile("r"):
            print(line, end="", flush=True)
    except OSError:
        pass
    print("ended", flush=True)


def _say(connection: socket.socket) -> None:
    try:
        for line in sys.stdin:
            connection.sendall(line.encode())
    except OSError:
        pass


if __name__ == "__main__":
    main()
