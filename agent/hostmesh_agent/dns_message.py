"""As much of DNS messages as the agent's front for TCP needs: RFC 1035, sections 4.1 and 4.2.2. Pure.

Envoy matches names in the case in which they are written. Names in DNS have no case, and some resolvers mix it on
purpose, to tell a forged answer from a true one: so the question goes to Envoy in lower case, and its answer comes
back in the case of the question.
"""

import struct
from dataclasses import dataclass
from typing import Final

HEADER_BYTES: Final = 12
MAX_QUESTION_BYTES: Final = 4096
"""Far above any question: a name of 255 bytes and options of EDNS."""
_MAX_LABEL_BYTES: Final = 63
_ANSWER: Final = 0x80
_TRUNCATED: Final = 0x02


@dataclass(frozen=True, slots=True)
class Question:
    """A message that asks about one name; `name` is as it is on the wire, with its lengths and the final zero."""

    message: bytes
    name: bytes

    def for_envoy(self) -> bytes:
        """Return the message with the name in lower case."""
        return self._with_name(self.message, self.name.lower())

    def answered(self, answer: bytes) -> bytes | None:
        """Return the answer in the case of the question; None if it answers another one."""
        same = answer[:2] == self.message[:2] and len(answer) >= HEADER_BYTES and answer[2] & _ANSWER
        if not same or answer[2] & _TRUNCATED:
            return None
        asked = self.name.lower()
        return answer.replace(asked, self.name) if answer[HEADER_BYTES:].startswith(asked) else answer

    def _with_name(self, message: bytes, name: bytes) -> bytes:
        return message[:HEADER_BYTES] + name + message[HEADER_BYTES + len(name) :]


def question(message: bytes) -> Question | None:
    """Return the one question of a message; None if it is none that a resolver puts."""
    if not HEADER_BYTES < len(message) <= MAX_QUESTION_BYTES or message[2] & _ANSWER:
        return None
    if struct.unpack_from(">H", message, 4)[0] != 1:
        return None
    at = HEADER_BYTES
    while at < len(message) and 0 < message[at] <= _MAX_LABEL_BYTES:
        at += 1 + message[at]
    # A pointer has nothing to point to in a question, and type and class must follow.
    if at + 1 + 4 > len(message) or message[at]:
        return None
    return Question(message, message[HEADER_BYTES : at + 1])


def framed(message: bytes) -> bytes:
    """Return a message as it goes over TCP: its length before it."""
    return struct.pack(">H", len(message)) + message
