"""Takes secrets out of text that leaves the host. Pure.

Two nets. What this host's secrets are is known, and each is looked for in every form that it could be written in. And
what looks like a secret is taken out, whoever's it is: better a line too many than one too few.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

HIDDEN: Final = "[redacted]"
_PIECE: Final = 12
"""Of what is known: shorter pieces are found in innocent words."""
_WRITTEN: Final = re.compile(rf"[A-Za-z0-9+/_=:-]{{{_PIECE},}}")
"""Of what every form of a key consists."""
_LONG: Final = 40
_PEM_BODY: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----([A-Za-z0-9+/=\s]+)-----END")
_WORDS: Final = (
    *("token", "passw", "passphrase", "secret", "credential", "apikey", "api_key", "api-key", "join_string"),
    *("privatekey", "private_key", "private-key", "authorization", "cookie", "x-auth", "x-amz-security"),
)
"""In a line where something is named like a secret, one of them is."""
_NAMES: Final = (
    r"[\w.-]{0,64}?(?:token|passw(?:or)?d|passphrase|secret|credential|api[_-]?key|private[_-]?key|join_string)"
    r"[\w.-]{0,64}"
)
_HEADERS: Final = r"(?:proxy-)?authorization|(?:set-)?cookie|x-api-key|x-auth[\w-]*|x-amz-security-token"
_PLAIN: Final = re.compile(r"\"?(?:-?\d+(?:\.\d+)?|true|false|null|none|)\"?[,;}\])]*", re.IGNORECASE)

_SHAPES: Final = (
    # A key, whole or cut off at its end, its lines as lines or as `\n` in a string.
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[A-Za-z0-9+/=\s]|\\n|\\r)*(?:-----END [A-Z ]*PRIVATE KEY-----)?"),
    re.compile(r"\bhm\d\.[A-Za-z0-9_-]+"),  # a join string
    re.compile(r"\beyJ[\w-]+\.[\w-]+(?:\.[\w-]*)*"),  # a JWT
    re.compile(r"(?<=://)[^/\s@\"']+@"),  # who calls, in a URL
    re.compile(r"(?i)\b(?:bearer|basic|digest|negotiate)\s+[\w.~+/=-]{6,}"),
)
_END: Final = re.compile(r"-----END [A-Z ]*PRIVATE KEY-----")
_BEFORE_END: Final = re.compile(r"(?:[nr]\\|[A-Za-z0-9+/=\s])*")
"""Of a key whose begin was cut off, read backwards."""
_LONGEST_KEY: Final = 1 << 14
_QUOTE: Final = r"\\{0,3}[\"']"
"""Inside of a string of JSON, which may be in another one, it has backslashes before it."""
_VALUE: Final = r"(\\{1,3}[\"'](?:[^\"'\\\n]|\\+[^\"'\\])*|\"(?:[^\"\\\n]|\\.)*\"?|'(?:[^'\\\n]|\\.)*'?|[^\n]+)"
"""Of a header; without quotes all that is left of the line."""
_HEADER: Final = re.compile(rf"(?i)(\b(?:{_HEADERS})(?:{_QUOTE})?\s*[:=]\s*){_VALUE}")
# As Envoy logs headers, one a line: 'cookie', 'a='b'', with nothing before a quote that is in the value.
_LISTED: Final = re.compile(
    rf"(?i)({_QUOTE}(?:{_HEADERS}|{_NAMES}){_QUOTE},\s*)"
    r"('[^\n]*|\"(?:[^\"\\\n]|\\.)*\"(?!\s*:)|\\{1,3}[\"'](?:[^\"'\\\n]|\\+[^\"'\\])*\\+[\"'](?!\s*:))"
)
# As Envoy's configuration, messages as text and its traces have them, maybe on two lines: key: "x-token" value: "...".
_PAIR: Final = re.compile(
    rf"(?i)(\b(?:key|name)(?:{_QUOTE})?\s*[:=]\s*(?:{_QUOTE})?(?:{_HEADERS}|{_NAMES})(?![\w.-])"
    rf"[\s\w,:=\"'\\{{\[-]{{0,120}}?\b(?:(?:raw_)?value|exact|prefix|suffix|contains|regex)(?:{_QUOTE})?\s*[:=]\s*){_VALUE}"
)
_NAMED: Final = re.compile(
    rf"(?i)((?<![\w.-]){_NAMES}\\?[\"']?\s*[:=]\s*)(\"(?:[^\"\\\n]|\\.)*\"?|'[^'\n]*'?|[^\s,;}}\]]+)"
)
_JWK: Final = re.compile(r"(\"(?:d|p|q|dp|dq|qi|k|oth)\"\s*:\s*)\"[A-Za-z0-9_=-]{8,}\"?")
_RUN: Final = re.compile(rf"[A-Za-z0-9+/_-]{{{_LONG},}}={{0,2}}")


class Redactor:
    """Knows this host's secrets. `count` is how many places were hidden."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        """Begin. A secret is a file's content: PEM, or a token. A host may have thousands."""
        pieces: set[str] = set()
        odd: set[str] = set()
        for form in (form for secret in secrets for form in written(secret)):
            if len(form) < 2 * _PIECE or not _WRITTEN.fullmatch(form):
                odd.add(form)
            else:
                # Whatever of it is in a text, if it is twice as long as a piece, has a whole piece in it.
                pieces.update(form[at : at + _PIECE] for at in range(0, len(form) - _PIECE + 1, _PIECE))
        self._pieces = frozenset(pieces)
        self._odd = sorted((each for each in odd if len(each) >= _PIECE), key=len, reverse=True)
        self.count = 0

    def clean(self, text: str) -> str:
        """Return the text without secrets."""
        for each in self._odd:
            self.count += text.count(each)
            text = text.replace(each, HIDDEN)
        if self._pieces:
            text = _WRITTEN.sub(self._known, text)
        for shape in _SHAPES:
            text = self._hide(shape, text)
        text = self._without_ends(text)
        text = _PAIR.sub(self._value, text)
        text = "\n".join(map(self._line, text.split("\n")))
        return _RUN.sub(self._run, text)

    def _line(self, line: str) -> str:
        """Hide values of what is named like a secret. Looked for in few lines only: the patterns are slow."""
        lower = line.lower()
        if any(word in lower for word in _WORDS):
            for named in (_LISTED, _HEADER, _NAMED):
                line = named.sub(self._value, line)
        if '"' in line:
            line, found = _JWK.subn(rf'\1"{HIDDEN}"', line)
            self.count += found
        return line

    def _without_ends(self, text: str) -> str:
        parts, at = [], 0
        for match in _END.finditer(text):
            before = text[max(at, match.start() - _LONGEST_KEY) : match.start()]
            key = _BEFORE_END.match(before[::-1])
            parts += [text[at : match.start() - (key.end() if key else 0)], HIDDEN]
            at = match.end()
            self.count += 1
        return "".join([*parts, text[at:]])

    def _known(self, match: "re.Match[str]") -> str:
        run = match[0]
        if self._pieces.isdisjoint(run[at : at + _PIECE] for at in range(len(run) - _PIECE + 1)):
            return run
        self.count += 1
        return HIDDEN

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
    """Yield the forms in which a secret could be in a text: as it is, in base64, in hexadecimal."""
    bodies = [b"".join(each.split()) for each in _PEM_BODY.findall(secret)]
    if not bodies:
        yield secret.decode("utf-8", "replace").strip()
    yield from _of_bytes(secret.strip())
    for body in bodies:
        yield body.decode("ascii")
        with suppress(binascii.Error):
            yield from _of_bytes(base64.b64decode(body, validate=True))


def _of_bytes(data: bytes) -> Iterator[str]:
    """Yield base64 and hexadecimal of bytes. Base64 in each of the three ways in which they can lie in other bytes."""
    for shift in range(3):
        # The first and the last characters depend on what is before and behind.
        middle = base64.b64encode(b"\0" * shift + data).rstrip(b"=")[4 if shift else 0 : -1].decode("ascii")
        yield from (middle, middle.translate(_URL_SAFE))
    yield from (data.hex(), data.hex().upper(), data.hex(":"), data.hex(":").upper())


_URL_SAFE: Final = str.maketrans("+/", "-_")
