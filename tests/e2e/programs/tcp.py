"""A protocol in which the server speaks first, as SMTP's or MySQL's: a greeting, then every line back in capitals."""

import socket
import socketserver
import sys


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"220 welcome\n")
        for line in self.rfile:
            self.wfile.write(line.upper())


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128  # of 5 a crowd of callers is dropped by the kernel, and each waits for a second or longer


def main() -> None:
    if sys.argv[1] == "serve":
        Server(("::", int(sys.argv[2])), Handler).serve_forever()
    with socket.create_connection((sys.argv[2], int(sys.argv[3])), timeout=5) as connection:
        lines = connection.makefile("rwb")
        greeting = lines.readline()
        lines.write(b"hello\n")
        lines.flush()
        print(greeting.decode() + lines.readline().decode(), end="")


if __name__ == "__main__":
    main()
