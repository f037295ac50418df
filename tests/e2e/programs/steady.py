"""A steady load over new and kept connections: steady.py URL... runs until its input ends, then prints a tally as JSON.

In each round every URL is asked once by a new connection and once by the one that is kept to it.
"""

import json
import sys
import threading
from collections import Counter
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

tally: Counter[str] = Counter()
over = threading.Event()


def ask(connection: HTTPConnection, path: str) -> str:
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
    except (OSError, HTTPException) as error:
        connection.close()
        return f"{type(error).__name__}: {error}"
    return str(answer.status)


def load(url: str) -> None:
    parts = urlsplit(url)
    kept = HTTPConnection(parts.netloc, timeout=10)
    while not over.wait(0.005):
        tally[ask(kept, parts.path)] += 1
        new = HTTPConnection(parts.netloc, timeout=10)
        tally[ask(new, parts.path)] += 1
        new.close()


threads = [threading.Thread(target=load, args=(each,)) for each in sys.argv[1:]]
for each in threads:
    each.start()
sys.stdin.read()
over.set()
for each in threads:
    each.join()
print(json.dumps(tally))
