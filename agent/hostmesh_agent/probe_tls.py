"""The process that asks a local program over TLS, for an HTTPS probe: standard library only, as it is started often.

The request comes on stdin; the first line of the answer goes to stdout. Exit code 1 with the reason on stdout.
"""

import socket
import ssl
import sys

_WITHIN_S = 300
_MAX_LINE_BYTES = 8192


def main() -> int:
    host, port = sys.argv[1], int(sys.argv[2])
    context = ssl.create_default_context()
    # As Kubernetes: it is asked whether the program answers, not who it is.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), _WITHIN_S) as plain, context.wrap_socket(plain) as secure:
            secure.sendall(sys.stdin.buffer.read())
            line = secure.makefile("rb").readline(_MAX_LINE_BYTES)
    except OSError as error:
        print(error)
        return 1
    sys.stdout.buffer.write(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
