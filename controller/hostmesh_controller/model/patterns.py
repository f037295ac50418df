"""What Envoy would refuse in texts it interprets: regular expressions (RE2), header names, retry conditions.

A refusal here names the line of the file; one by Envoy comes later, from every host.
"""

import re
from http import HTTPStatus
from typing import Final

_REGEX_MAX: Final = 1024
_FOREIGN_GROUPS: Final = {
    "(?=": "look-around",
    "(?!": "look-around",
    "(?<=": "look-around",
    "(?<!": "look-around",
    "(?>": "an atomic group",
    "(?P=": "a back-reference",
    "(?#": "a comment",
}
_REPEAT: Final = re.compile(r"\{(\d{1,9})(?:,(\d{0,9}))?\}")
_REPEAT_MAX: Final = 1000
"""RE2's limit."""


def check_regex(value: str) -> str:
    """Return `value` unless RE2 would certainly refuse it. What passes may still be refused by Envoy.

    Raises:
        ValueError: it is too long, uses what RE2 does not have, or has brackets that do not match.
    """
    if not value:
        raise ValueError("a regular expression must not be empty")
    if len(value) > _REGEX_MAX:
        raise ValueError(f"a regular expression may have {_REGEX_MAX} characters at most")
    _check_brackets(value)
    for repeat in _REPEAT.finditer(value):
        least, most = int(repeat[1]), int(repeat[2] or repeat[1])
        if max(least, most) > _REPEAT_MAX or least > most:
            raise ValueError(f"{repeat[0]!r} is no repetition of RE2: 0 to {_REPEAT_MAX} times, the smaller first")
    return value


def _check_brackets(value: str) -> None:
    """Walk over the pattern; `operand` tells whether what came last can be repeated."""
    depth, index, operand = 0, 0, False
    while index < len(value):
        char = value[index]
        if char == "\\":
            index, operand = _escape(value, index), True
        elif char == "[":
            index, operand = _class_end(value, index), True
        elif char == "(":
            depth, operand = depth + 1, False
            index += _group_start(value, index)
        elif char in "*+?":
            if not operand:
                raise ValueError(f"{char!r} has nothing before it to repeat in {value!r}")
            # `*?` is one operator, and nothing repeats a repetition.
            index, operand = index + value.startswith("?", index + 1), False
        else:
            depth, operand = depth - (char == ")"), char != "|"
        if depth < 0:
            raise ValueError(f"')' without '(' in {value!r}")
        index += 1
    if depth:
        raise ValueError(f"'(' without ')' in {value!r}")


def _escape(value: str, index: int) -> int:
    following = value[index + 1 : index + 2]
    if not following:
        raise ValueError(f"a backslash at the end of {value!r}")
    if following in "123456789":
        raise ValueError(f"'\\{following}' (a back-reference) is not part of RE2, Envoy's regular expressions")
    if following == "Z":
        raise ValueError("'\\Z' is not part of RE2, Envoy's regular expressions; write '\\z'")
    if following == "Q":
        end = value.find("\\E", index)
        return len(value) if end < 0 else end + 1
    return index + 1


def _class_end(value: str, index: int) -> int:
    # The first character may be ']' itself; '[:alpha:]' has one inside.
    start = index + 2 if value.startswith("^", index + 1) else index + 1
    position = start
    while position < len(value):
        if value[position] == "\\":
            position += 1
        elif value.startswith("[:", position) and ":]" in value[position:]:
            position = value.index(":]", position) + 1
        elif value[position] == "]" and position > start:
            return position
        position += 1
    raise ValueError(f"'[' without ']' in {value!r}")


def _group_start(value: str, index: int) -> int:
    """Return how many more characters belong to what opens a group."""
    for form, name in _FOREIGN_GROUPS.items():
        if value.startswith(form, index):
            raise ValueError(f"{form!r} ({name}) is not part of RE2, Envoy's regular expressions")
    return 1 if value.startswith("?", index + 1) else 0


_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_MAX: Final = 256
_PSEUDO_HEADERS: Final = frozenset({":method", ":scheme", ":authority", ":path", ":status"})


def check_header_name(value: str, *, pseudo: bool = False) -> str:
    """Return `value` if it can be the name of a header, or of a pseudo header such as `:method` where these are meant.

    Raises:
        ValueError: it cannot.
    """
    if pseudo and value in _PSEUDO_HEADERS:
        return value
    if len(value) > _HEADER_MAX or not _HEADER_NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not a valid header name")
    return value


def check_one_line(value: str) -> str:
    """Return `value` if it is one line: what may be in a header.

    Raises:
        ValueError: it has a line break or NUL.
    """
    if any(char in value for char in "\r\n\0"):
        raise ValueError("a line break is not allowed here")
    return value


_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_COMMAND: Final = re.compile(r"%%|%[A-Z0-9_]+(?:\([^)]*\))?(?::[0-9]+)?%")
_VALUE_MAX: Final = 16384
"""Envoy's limit."""


def check_header_value(value: str) -> str:
    """Return `value` if Envoy takes it for a header to set: text in which %COMMAND% stands for something.

    Raises:
        ValueError: it has a line break or another control character, is too long, or has a '%' that starts no command.
    """
    if len(value.encode()) > _VALUE_MAX:
        raise ValueError(f"a header may have {_VALUE_MAX} bytes at most")
    if "%" in _COMMAND.sub("", value):
        raise ValueError("a '%' starts one of Envoy's commands, such as %REQ(x-id)%; write '%%' for the sign itself")
    if _CONTROL.search(value.replace("\n", "").replace("\r", "")):
        raise ValueError("a control character is not allowed in a header")
    return check_one_line(value)


RETRY_CONDITIONS: Final = frozenset(
    {"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited"}
    | {"retriable-4xx", "refused-stream", "retriable-status-codes", "retriable-headers", "http3-post-connect-failure"}
    | {"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"}
)
"""Envoy's conditions, those of gRPC last. A number is a status code."""


_STATUS_CODES: Final = frozenset(str(status.value) for status in HTTPStatus)


def unknown_conditions(value: str) -> list[str]:
    """Return the parts of a comma-separated `retryOn` that are neither a condition nor a status code.

    As in Istio a space beside a comma belongs to the part, which makes it unknown.
    """
    return [part for part in value.split(",") if part not in RETRY_CONDITIONS and part not in _STATUS_CODES]
