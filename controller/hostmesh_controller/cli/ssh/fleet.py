"""Many hosts at once: each in a thread of its own, a line for each step, a table at the end."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Protocol

from hostmesh_controller.cli.output import Format, emit, note, say, table
from hostmesh_controller.cli.ssh.steps import HostResult

AT_ONCE = 16


class Work(Protocol):
    """What is done to one host; `halt` makes `run` take back what it did, and return."""

    def run(self) -> HostResult: ...

    def halt(self) -> None: ...


def teller(host: str) -> Callable[[str], None]:
    """Return what tells the steps of a host, on stderr."""
    return lambda line: note(f"{host}: {line}")


def run_all(works: Sequence[Work], at_once: int = AT_ONCE) -> list[HostResult]:
    """Do all; results are in their order. Ctrl-C and SIGTERM have what runs taken back."""
    pool = ThreadPoolExecutor(max_workers=max(1, min(at_once, len(works))))
    halted = threading.Event()
    with pool, _on_signal(halted):
        tasks: list[Future[HostResult]] = [pool.submit(each.run) for each in works]
        pending = set(tasks)
        told = False
        while pending:
            _, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            if halted.is_set() and not told:
                told = True
                note("interrupted: what was done is taken back, which takes a moment")
                for each in works:
                    each.halt()
    return [each.result() for each in tasks]


@contextmanager
def _on_signal(halted: threading.Event) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in before:
        signal.signal(each, lambda *_: halted.set())
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def show(results: Sequence[HostResult], output: Format) -> None:
    """Print the results."""
    if output is not Format.TABLE:
        data = [
            {
                "host": each.host,
                "outcome": each.outcome,
                "step": each.step or None,
                "message": each.message or None,
                "cure": each.cure or None,
                "left_behind": list(each.left_behind),
                "request": each.request or None,
                "answered": not each.lacks if each.request else None,
            }
            for each in results
        ]
        emit(data, output)
        return
    if any(each.failed for each in results):
        rows = [(each.host, _outcome(each), each.step, each.message, each.cure) for each in results]
        table(("HOST", "RESULT", "STEP", "WHAT IS WRONG", "CURE"), rows, empty="no hosts")
    else:
        table(("HOST", "RESULT"), [(each.host, _outcome(each)) for each in results], empty="no hosts")
    for each in results:
        if each.request:
            say(f"{each.host}: {each.request}")
    sys.stdout.flush()
    for each in results:
        for left in each.left_behind:
            note(f"{each.host}: could not be taken back: {left}")


def _outcome(result: HostResult) -> str:
    return f"{result.outcome}; {result.lacks}" if result.lacks else result.outcome
