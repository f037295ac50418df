"""An ordinary HTTP client: calls a URL again and again, and tells what came of it as one line of JSON.

Even workers keep their connection, odd ones open one for every request. It ends after so many requests, or when its
standard input is closed.
"""

import argparse
import collections
import http.client
import json
import sys
import threading
import time
from urllib.parse import urlsplit

TIMEOUT_S = 10.0


class Tally:
    def __init__(self, count: int) -> None:
        self.left = count
        self.sent = 0
        self.failed = 0
        self.versions: collections.Counter[str] = collections.Counter()
        self.errors: list[str] = []
        self.stopped = threading.Event()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Whether there is another request to send."""
        with self._lock:
            if self.stopped.is_set() or self.left == 0:
                return False
            self.left -= 1
            self.sent += 1
            return True

    def add(self, version: str, error: str) -> None:
        with self._lock:
            if error:
                self.failed += 1
                self.errors.append(f"{time.strftime('%X')} {error}")
            else:
                self.versions[version] += 1


def work(tally: Tally, url: str, pause_s: float, *, keep: bool) -> None:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=TIMEOUT_S)
    while tally.take():
        try:
            connection.request("GET", parts.path or "/")
            answer = connection.getresponse()
            body = answer.read()
            if answer.status == 200:
                tally.add(json.loads(body).get("version", ""), "")
            else:
                tally.add("", f"status {answer.status}: {body[:200].decode(errors='replace')}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            tally.add("", f"{type(error).__name__}: {error}")
            connection.close()
        if not keep:
            connection.close()
        if pause_s:
            tally.stopped.wait(pause_s)
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--count", type=int, default=-1, help="-1: until standard input is closed")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between a worker's requests")
    options = parser.parse_args()
    tally = Tally(options.count)
    workers = [
        threading.Thread(target=work, args=(tally, options.url, options.pause), kwargs={"keep": number % 2 == 0})
        for number in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    if options.count < 0:
        sys.stdin.read()
        tally.stopped.set()
    for worker in workers:
        worker.join()
    print(
        json.dumps({"sent": tally.sent, "failed": tally.failed, "versions": tally.versions, "errors": tally.errors[:5]})
    )


if __name__ == "__main__":
    main()
