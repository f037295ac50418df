"""An HTTP service that answers with its name and the headers it saw."""

import json
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = {"name": sys.argv[2], "path": self.path, "headers": headers, "peer": self.client_address[0]}
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 128  # see tcp.py


if __name__ == "__main__":
    Server(("::", int(sys.argv[1])), Handler).serve_forever()
