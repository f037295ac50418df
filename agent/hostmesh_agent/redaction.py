"""Takes secrets out of text that leaves the host. Pure.

Two nets. What this host's secrets are is known, and each is looked for in every form that it could be written in. And
what looks like a secret is taken out, whoever's it is: better a line too many than one too few.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from typing import Final

HIDDEN: Final = "[redacted]"
_SHORTEST: Final = 12
"""Of what is known: shorter pieces are found in innocent words."""
_LONG: Final = 40
_PEM_BODY: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----([A-Za-z0-9+/=\s]+)-----END")
_NAMES: Final = (
    r"[\w.-]*(?:token|passw(?:or)?d|passphrase|secret|credential|api[_-]?key|private[_-]?key|join_string)[\w.-]*"
)
_HEADERS: Final = r"(?:proxy-)?authorization|(?:set-)?cookie|x-api-key|x-auth[\w-]*|x-amz-security-token"
_PLAIN: Final = re.compile(r"\"?(?:-?\d+(?:\.\d+)?|true|false|null|none|)\"?[,;}\])]*", re.IGNORECASE)

_SHAPES: Final = (
    # A key, whole or cut off at either end, its lines as lines or as `\n` in a string.
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[A-Za-z0-9+/=\s]|\\n|\\r)*(?:-----END [A-Z ]*PRIVATE KEY-----)?"),
    re.compile(r"(?:[A-Za-z0-9+/=]|\s|\\n|\\r)*-----END [A-Z ]*PRIVATE KEY-----"),
    re.compile(r"\bhm\d\.[A-Za-z0-9_-]+"),  # a join string
    re.compile(r"\beyJ[\w-]+\.[\w-]+(?:\.[\w-]*)*"),  # a JWT
    re.compile(r"(?<=://)[^/\s@\"']+@"),  # who calls, in a URL
    re.compile(r"(?i)\b(?:bearer|basic|digest|negotiate)\s+[\w.~+/=-]{6,}"),
)
_HEADER: Final = re.compile(rf"(?i)(\b(?:{_HEADERS})\\?[\"']?\s*[:=]\s*)(\\?[\"'](?:[^\"'\\\n]|\\[^\"'])*|[^\n]+)")
_NAMED: Final = re.compile(
    rf"(?i)((?<![\w.-]){_NAMES}\\?[\"']?\s*[:=]\s*)(\"(?:[^\"\\\n]|\\.)*\"?|'[^'\n]*'?|[^\s,;}}\]]+)"
)
_JWK: Final = re.compile(r"(\"(?:d|p|q|dp|dq|qi|k|oth)\"\s*:\s*)\"[A-Za-z0-9_=-]{8,}\"?")
_RUN: Final = re.compile(rf"[A-Za-z0-9+/_-]{{{_LONG},}}={{0,2}}")


class Redactor:
    """Knows this host's secrets. `count` is how many places were hidden."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        """Begin. A secret is a file's content, PEM or text or bytes."""
        forms = {form for secret in secrets for form in written(secret) if len(form) >= _SHORTEST}
        longest_first = sorted(forms, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self.count = 0

    def clean(self, text: str) -> str:
        """Return the text without secrets."""
        if self._known is not None:
            text = self._hide(self._known, text)
        for shape in _SHAPES:
            text = self._hide(shape, text)
        for named in (_HEADER, _NAMED):
            text = named.sub(self._value, text)
        text, found = _JWK.subn(rf'\1"{HIDDEN}"', text)
        self.count += found
        return _RUN.sub(self._run, text)

    def _hide(self, pattern: "re.Pattern[str]", text: str) -> str:
        text, found = pattern.subn(HIDDEN, text)
        self.count += found
        return text

    def _value(self, match: "re.Match[str]") -> str:
        value = match[2]
        if HIDDEN in value or _PLAIN.fullmatch(value):
            return match[0]
        self.count += 1
        return f"{match[1]}{HIDDEN}"

    def _run(self, match: "re.Match[str]") -> str:
        """Hide a long run of letters and digits, unless it is hexadecimal (a digest, a serial) or made of words."""
        run = match[0]
        if not (re.search("[A-Z]", run) and re.search("[a-z]", run) and re.search("[0-9]", run)):
            return run
        if all(len(word) < _LONG // 2 and re.fullmatch(r"[a-z0-9-]*|[A-Z_]*", word) for word in run.split("/")):
            return run
        self.count += 1
        return HIDDEN


def written(secret: bytes) -> Iterator[str]:
    """Yield the forms in which a secret could be in a text: as it is, line by line, in base64, in hexadecimal."""
    bodies = [b"".join(each.split()) for each in _PEM_BODY.findall(secret)]
    for body in bodies:
        yield body.decode("ascii")
        # A line of a PEM, and what a text of another width would have of it.
        yield from (body[at : at + 16].decode("ascii") for at in range(0, len(body) - 15, 16))
        try:
            yield from _of_bytes(base64.b64decode(body, validate=True))
        except binascii.Error:
            continue
    if not bodies:
        text = secret.decode("utf-8", "replace").strip()
        yield text
        yield from _of_bytes(secret.strip())


def _of_bytes(data: bytes) -> Iterator[str]:
    """Yield base64 and hexadecimal of bytes. Base64 in each of the three ways in which they can lie in other bytes."""
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + data)
        # The first and the last characters depend on what is before and behind.
        middle = encoded[4 if shift else 0 :].rstrip(b"=")[:-1].decode("ascii")
        yield from (middle, middle.translate(_URL_SAFE))
        yield from (each for text in (middle, middle.translate(_URL_SAFE)) for each in _pieces(text))
    yield from (data.hex(), data.hex().upper(), data.hex(":"), data.hex(":").upper())


def _pieces(text: str) -> Iterator[str]:
    yield from (text[at : at + 24] for at in range(0, len(text) - 23, 24))


_URL_SAFE: Final = str.maketrans("+/", "-_")
