"""YAML bytes to data that knows its lines.

The parser is libyaml's; composing is ours, because what a policy needs differs from YAML 1.1: of the plain scalars only
`true` and `false` are booleans (`on`, `no` and `y` are text), numbers are written as in JSON (`010` and `1:30` are
text), and nothing becomes a date. Duplicate keys, tags, merge keys and further documents are faults. Every size is
bounded: aliases count as often as they are used, so no document unfolds into more than `NODES_MAX` nodes.

Files that were written for another reader can be read in its way: a `Dialect` says what plain scalars are, and merge
keys work.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import yaml

from sidecar.policy.faults import Fault, PolicyError, shown

FILE_BYTES_MAX = 16 * 1024 * 1024
"""Several times a policy of 10,000 rules."""

NODES_MAX = 2_000_000
"""Scalars, sequences and mappings with every alias unfolded: a document of `FILE_BYTES_MAX` has fewer."""

DEPTH_MAX = 64
"""A policy needs about ten, `authorize` nested five deep included; a rate limit file two for each level it nests."""

INTEGER_DIGITS_MAX = 18

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}
_MERGE = "<<"
_SIMPLE_KEY = re.compile(r"[A-Za-z0-9_*-]+")

PathParts = tuple["str | int", ...]


class Mapping(dict[str, Any]):
    """A mapping that knows its own line, and each key's."""

    __slots__ = ("key_lines", "line")

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.key_lines: dict[str, int] = {}


class Sequence(list[Any]):
    """A sequence that knows its own line, and each item's."""

    __slots__ = ("item_lines", "line")

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.item_lines: list[int] = []


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A document and the name of its file: turns paths into lines, and both into faults."""

    file: str
    root: Any

    def line_of(self, path: PathParts) -> int:
        """The line of the key or item at a path; of the nearest thing around it where the path leads nowhere."""
        node, line = self.root, getattr(self.root, "line", 1)
        for part in path:
            if isinstance(node, Mapping) and part in node:
                line, node = node.key_lines[str(part)], node[str(part)]
            elif isinstance(node, Sequence) and isinstance(part, int) and part < len(node):
                line, node = node.item_lines[part], node[part]
            else:
                break
        return int(line)

    def fault(self, path: PathParts, message: str, accepted: str = "") -> Fault:
        """A fault at a path."""
        return Fault(self.file, self.line_of(path), dotted(path), message, accepted)


def dotted(path: PathParts) -> str:
    """A path as people write it: `rules[2].match.path`; unusual keys in quotes: `claims["a.b"]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _SIMPLE_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f'["{part}"]'
    return text


Dialect: TypeAlias = Callable[[str], Any]
"""What a plain scalar stands for, from its text."""


def read(path: Path, dialect: Dialect | None = None) -> Source:
    """Read and parse one file.

    Raises:
        PolicyError: It cannot be read, or `parse` refuses it.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not a usable path"
        raise PolicyError([Fault(str(path), 0, "", f"cannot be read: {reason}", "a readable YAML file")]) from None
    return parse(raw, str(path), dialect)


def parse(raw: bytes, file: str, dialect: Dialect | None = None) -> Source:
    """Parse one YAML document.

    Raises:
        PolicyError: It is not one well-formed document within the limits; all duplicate keys are reported at once.
    """
    if len(raw) > FILE_BYTES_MAX:
        raise PolicyError([Fault(file, 0, "", "the file is too large", f"at most {FILE_BYTES_MAX} bytes")])
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PolicyError([Fault(file, line, "", "this line is not UTF-8", "a file encoded in UTF-8")]) from None
    composer = _Composer(text, file, dialect)
    try:
        root = composer.document()
    except yaml.YAMLError as error:
        composer.faults.append(_syntax_fault(error, text, file))
    except _Stopped:
        pass
    else:
        if not composer.faults:
            return Source(file, root)
    raise PolicyError(composer.faults)


def _syntax_fault(error: yaml.YAMLError, text: str, file: str) -> Fault:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        line = mark.line + 1
    else:
        line = text.encode("utf-8").count(b"\n", 0, max(getattr(error, "position", 0), 0)) + 1
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
    accepted = "one well-formed YAML document"
    lines = text.splitlines()
    if "cannot start any token" in problem and line <= len(lines) and "\t" in lines[line - 1]:
        accepted = "spaces for indentation, not tabs"
    return Fault(file, line, "", f"not YAML: {problem}", accepted)


class _Stopped(Exception):  # noqa: N818 - a way out, not an error of its own
    """Composing cannot go on; the fault is recorded."""


class _Composer:
    """One document out of libyaml's events."""

    def __init__(self, text: str, file: str, dialect: Dialect | None) -> None:
        self.faults: list[Fault] = []
        self._dialect = dialect
        self._file = file
        self._parser: Any = yaml.CSafeLoader(text)
        self._nodes = 0
        self._anchors: dict[str, tuple[Any, int]] = {}

    def document(self) -> Any:
        """The one document's root."""
        next_event = self._parser.get_event
        next_event()  # the stream's start
        event = next_event()
        if isinstance(event, yaml.StreamEndEvent):
            self._stop(1, "the file is empty", "a YAML mapping")
        root = self._node(next_event(), ())
        next_event()  # the document's end
        event = next_event()
        if not isinstance(event, yaml.StreamEndEvent):
            self._stop(event.start_mark.line + 1, "a second document starts here", "one document a file")
        return root

    def _node(self, event: Any, path: PathParts) -> Any:
        kind = event.__class__
        line = event.start_mark.line + 1
        if kind is yaml.AliasEvent:
            return self._alias(event.anchor, line)
        if event.tag is not None and event.tag != "!":
            self._stop(line, f"the tag {shown(event.tag)} is not supported", "values without tags")
        before = self._nodes
        self._count(1, line)
        if kind is yaml.ScalarEvent:
            value = self._scalar(event, line)
        elif len(path) >= DEPTH_MAX:
            self._stop(line, "nested too deeply", f"at most {DEPTH_MAX} levels")
        elif kind is yaml.MappingStartEvent:
            value = self._mapping(line, path)
        else:
            value = self._sequence(line, path)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, self._nodes - before)
        return value

    def _alias(self, anchor: str, line: int) -> Any:
        if anchor not in self._anchors:
            self._stop(line, f"the alias *{anchor} has no anchor before it", f"&{anchor} on an earlier, finished value")
        value, nodes = self._anchors[anchor]
        self._count(nodes, line)
        return value

    def _mapping(self, line: int, path: PathParts) -> Mapping:
        mapping = Mapping(line)
        merged: list[tuple[Any, int]] = []
        next_event = self._parser.get_event
        while not isinstance(event := next_event(), yaml.MappingEndEvent):
            key_line = event.start_mark.line + 1
            key = self._key(event, key_line)
            here = (*path, key)
            if key == _MERGE and not event.style:
                merged.append((self._node(next_event(), here), key_line))
                continue
            if key in mapping:
                first = mapping.key_lines[key]
                message = f"the key is repeated: lines {first} and {key_line}"
                self.faults.append(Fault(self._file, key_line, dotted(here), message, "each key once"))
            value = self._node(next_event(), here)
            mapping[key] = value
            mapping.key_lines.setdefault(key, key_line)
        for node, key_line in merged:
            self._merge(mapping, node, key_line)
        return mapping

    def _merge(self, into: Mapping, node: Any, line: int) -> None:
        """Add what a merge key holds: a mapping, or several, of which the first counts; written keys count before."""
        for mapping in node if isinstance(node, Sequence) else [node]:
            if not isinstance(mapping, Mapping):
                self._stop(line, "a merge key (<<) holds something other than mappings", "an alias of a mapping")
            for key in mapping.keys() - into.keys():
                into[key] = mapping[key]
                into.key_lines[key] = mapping.key_lines[key]

    def _key(self, event: Any, line: int) -> str:
        if not isinstance(event, yaml.ScalarEvent) or (event.tag is not None and event.tag != "!"):
            self._stop(line, "a key must be plain text", "text before the colon")
        if self._dialect is None and event.value == _MERGE and not event.style:
            self._stop(line, "merge keys (<<) are not supported", "aliases of whole values: `key: *anchor`")
        self._count(1, line)
        self._refuse_controls(event.value, line)
        if event.anchor is not None:
            self._anchors[event.anchor] = (event.value, 1)
        return str(event.value)

    def _sequence(self, line: int, path: PathParts) -> Sequence:
        sequence = Sequence(line)
        next_event = self._parser.get_event
        while not isinstance(event := next_event(), yaml.SequenceEndEvent):
            sequence.item_lines.append(event.start_mark.line + 1)
            sequence.append(self._node(event, (*path, len(sequence))))
        return sequence

    def _scalar(self, event: Any, line: int) -> Any:
        text: str = event.value
        if event.style:
            self._refuse_controls(text, line)
            return text
        if self._dialect is not None:
            self._refuse_controls(text, line)
            return self._dialect(text)
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            if len(text) > INTEGER_DIGITS_MAX:
                self._stop(line, "the number is too long", f"at most {INTEGER_DIGITS_MAX} digits")
            return int(text)
        if _NUMBER.fullmatch(text):
            return float(text)
        self._refuse_controls(text, line)
        return text

    def _refuse_controls(self, text: str, line: int) -> None:
        if _CONTROL.search(text):
            self._stop(line, "the text holds a control character", "text without control characters")

    def _count(self, nodes: int, line: int) -> None:
        self._nodes += nodes
        if self._nodes > NODES_MAX:
            self._stop(line, "the document is too large once its aliases are unfolded", f"at most {NODES_MAX} values")

    def _stop(self, line: int, message: str, accepted: str) -> NoReturn:
        self.faults.append(Fault(self._file, line, "", message, accepted))
        raise _Stopped
