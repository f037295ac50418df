"""A small fast HTTP server, for inside a host: `python3 -c "$(cat server.py)" PORT`. Standard library alone.

It answers every request with the caller's certificate as Envoy tells it, or with "plain"; the connection stays open. It
takes some ten microseconds per request, so that what is measured is the way to it.
"""

import selectors
import socket
import sys


def answer(request: bytes) -> bytes:
    """Return the response to one request."""
    lines = (line for line in request.split(b"\r\n") if line[:26].lower().startswith(b"x-forwarded-client-cert:"))
    body = next(lines, b"plain")
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


def main(port: int) -> None:
    selector = selectors.DefaultSelector()
    listening = socket.create_server(("0.0.0.0", port), backlog=1024)
    selector.register(listening, selectors.EVENT_READ)
    unread: dict[socket.socket, bytes] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is listening:
                connection, _ = listening.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(connection, selectors.EVENT_READ)
                unread[connection] = b""
                continue
            connection = key.fileobj  # type: ignore[assignment] # only sockets are registered
            try:
                data = connection.recv(65_536)
            except OSError:
                data = b""
            if not data:
                selector.unregister(connection)
                del unread[connection]
                connection.close()
                continue
            *requests, unread[connection] = (unread[connection] + data).split(b"\r\n\r\n")
            connection.sendall(b"".join(map(answer, requests)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
