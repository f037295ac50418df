"""JSON lines on stderr; the service manager keeps them."""

import contextlib
import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import structlog

_SECRET_KEYS: Final = ("token", "key_pem", "private_key", "password", "secret", "join_string")


def configure(level: str) -> None:
    """Log from `level` on ("debug", "info", "warning", "error"); what is named like a secret is not written."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            hide_secrets,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=_Lines,
    )


class _Lines:
    """Writes lines to stderr, and goes on if nobody takes them: an agent must not end because its log has."""

    def __init__(self, *_: object) -> None: ...

    def msg(self, line: str) -> None:
        # A full disk, a reader that has gone, a stderr that was closed or never was.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def hide_secrets(_logger: object, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Replace the values of keys that name a secret: the last line of defence, not a licence to log one."""
    for key in event:
        if any(secret in key.lower() for secret in _SECRET_KEYS):
            event[key] = "***"
    return event
