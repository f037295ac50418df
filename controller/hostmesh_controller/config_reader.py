"""Typed values out of a TOML document, and every problem of it with its line. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from hostmesh_api.dialling import parse_blocks

_DNS_NAME: Final = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_UNIX_PATH_BYTES: Final = 107  # sun_path of Linux, less its terminating zero


class ConfigError(Exception):
    """The file cannot be used; `problems` says where and why, one sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Reader:
    """Takes typed values out of a TOML document and collects what is wrong with it."""

    def __init__(self, document: Mapping[str, object], source: str, lines: Sequence[str]) -> None:
        self._document = document
        self._source = source
        self._lines = lines
        self._known: dict[str, set[str]] = {"": set()}
        self.problems: list[str] = []

    def refuse(self, path: str, message: str) -> None:
        """Take note that a setting cannot be as it is."""
        line = _line_of(self._lines, path)
        place = f"{self._source}:{line}" if line else self._source
        self.problems.append(f"{place}: {path}: {message}")

    def _get(self, path: str, kind: type, what: str) -> object | None:
        table, _, key = path.rpartition(".")
        self._known.setdefault(table, set()).add(key)
        holder: object = self._table(table)
        if not isinstance(holder, Mapping) or key not in holder:
            return None
        value = holder[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.refuse(path, f"must be {what}, not {value!r}")
            return None
        return value

    def _table(self, path: str) -> object:
        """Return the table at a dotted path, an empty one if it is not there, and what stands there if it is none."""
        holder: object = self._document
        above = ""
        for name in path.split(".") if path else ():
            self._known.setdefault(above, set()).add(name)
            holder = holder.get(name, {}) if isinstance(holder, Mapping) else {}
            above = f"{above}.{name}" if above else name
        return holder

    def has(self, table: str) -> bool:
        """Tell whether the file has the table, be it empty."""
        above, _, name = table.rpartition(".")
        self._table(table)
        holder = self._table(above)
        return isinstance(holder, Mapping) and name in holder

    def duration(self, path: str, default: timedelta, most: timedelta) -> timedelta:
        """Return a time such as "30d", "12h", "90m" or "45s"; "0" is none."""
        value = self.text(path, "")
        if not value:
            return default
        match = re.fullmatch(r"(0|[1-9][0-9]{0,7})([smhd]?)", value)
        if match is None or (match[2] == "" and match[1] != "0"):
            self.refuse(path, f"'{value}' is not a time such as '30d', '12h', '90m' or '45s'; '0' is none")
            return default
        found = int(match[1]) * timedelta(seconds={"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]])
        if found > most:
            self.refuse(path, f"must be at most {most.days} days, not '{value}'")
        return found

    def tables(self, path: str) -> list[object]:
        """Return the tables `[[path]]`, for somebody who knows what they hold; nothing if there are none."""
        value = self._get(path, list, f"tables: write [[{path}]]")
        return value if isinstance(value, list) else []

    def names(self, table: str) -> frozenset[str]:
        """Return the names that a table of the file sets."""
        found = self._table(table)
        return frozenset(map(str, found)) if isinstance(found, Mapping) else frozenset()

    def texts(self, path: str) -> tuple[str, ...]:
        """Return a list of strings; nothing if it is not there."""
        value = self._get(path, list, "a list of strings")
        if not isinstance(value, list):
            return ()
        for item in value:
            if not isinstance(item, str) or not item:
                self.refuse(path, f"{item!r} is not a string")
        return tuple(str(item) for item in value)

    def paths(self, path: str) -> tuple[Path, ...]:
        """Return a list of absolute paths; nothing if it is not there."""
        found = tuple(map(Path, self.texts(path)))
        for each in found:
            if not each.is_absolute():
                self.refuse(path, f"must be absolute paths, not '{each}'")
        return found

    def text(self, path: str, default: str) -> str:
        value = self._get(path, str, "a string")
        return default if value is None else str(value)

    def path(self, path: str, default: Path) -> Path:
        value = Path(self.text(path, str(default)))
        if not value.is_absolute():
            self.refuse(path, f"must be an absolute path, not '{value}'")
        return value

    def optional_path(self, path: str) -> Path | None:
        return self.path(path, Path("/")) if self.text(path, "") else None

    def socket_path(self, path: str, default: Path) -> Path:
        value = self.path(path, default)
        if len(str(value).encode()) > _UNIX_PATH_BYTES:
            self.refuse(path, f"'{value}' is longer than the kernel's {_UNIX_PATH_BYTES} bytes; use a shorter path")
        return value

    def dns_name(self, path: str, default: str) -> str:
        value = self.text(path, default)
        if not _DNS_NAME.fullmatch(value):
            self.refuse(path, f"'{value}' is not a DNS name in lower case, such as 'mesh.example.org'")
        return value

    def choice(self, path: str, default: str, choices: Sequence[str]) -> str:
        value = self.text(path, default)
        if value not in choices:
            self.refuse(path, f"'{value}' is not one of {', '.join(choices)}{_nearest(value, choices)}")
        return value

    def integer(self, path: str, default: int, least: int, most: int) -> int:
        value = self._get(path, int, f"a whole number from {least} to {most}")
        if value is None:
            return default
        number = int(str(value))
        if not least <= number <= most:
            self.refuse(path, f"must be from {least} to {most}, not {number}")
        return number

    def addresses(self, path: str, default: Sequence[str]) -> tuple[str, ...]:
        value = self._get(path, list, "a list of IP addresses and DNS names")
        if not isinstance(value, list):
            return tuple(default)
        if not value:
            self.refuse(path, "must name at least one address under which agents reach the controller")
        for item in value:
            if not isinstance(item, str) or not (is_ip(item) or _DNS_NAME.fullmatch(item)):
                self.refuse(path, f"{item!r} is neither an IP address nor a DNS name in lower case")
            elif is_ip(item) and ip_address(item).is_unspecified:
                self.refuse(path, f"{item!r} is not an address that agents can call; name the machine's own")
        return tuple(str(item) for item in value)

    def blocks(self, path: str) -> tuple[str, ...]:
        value = self._get(path, list, "a list of address blocks such as 10.0.0.0/8")
        for item in value if isinstance(value, list) else ():
            try:
                parse_blocks([str(item)])
            except ValueError as error:
                self.refuse(path, f"{item!r} is not a block of addresses such as 10.0.0.0/8: {error}")
        return tuple(str(item) for item in value) if isinstance(value, list) else ()

    def endpoint(self, path: str, default: Endpoint) -> Endpoint:
        value = self.text(path, str(default))
        host, colon, port = value.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not colon or not is_ip(bare) or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
            self.refuse(path, f"'{value}' is not IP:PORT, such as '{default}'")
            return default
        return Endpoint(bare, int(port))

    def refuse_unknown(self) -> None:
        for table, known in list(self._known.items()):
            holder = self._table(table)
            if not isinstance(holder, Mapping):
                self.refuse(table, f"must be a table: write [{table}]")
                continue
            for key in holder:
                if key not in known:
                    path = f"{table}.{key}" if table else str(key)
                    self.refuse(path, f"unknown setting '{key}'{_nearest(key, sorted(known))}")


def _nearest(name: str, known: Sequence[str]) -> str:
    found = get_close_matches(name, known, n=1)
    return f"; did you mean '{found[0]}'?" if found else ""


def is_ip(text: str) -> bool:
    """Tell whether a text is an IP address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _line_of(lines: Sequence[str], path: str) -> int | None:
    """Find the line that sets `path`: tomllib keeps no places. Absent when it is written in an unusual way."""
    table, _, key = path.rpartition(".")
    current = ""
    for number, line in enumerate(lines, start=1):
        stripped = line.strip()
        if header := re.match(r"\[\s*([\w.-]+)\s*\]", stripped):
            current = header[1]
            if current == path:
                return number
        elif re.match(rf"[\"']?{re.escape(key)}[\"']?\s*[=.]", stripped) and current == table:
            return number
    return None
