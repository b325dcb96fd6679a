"""Read a pickle as data: no class in it is imported, and no function in it is called.

Every global becomes a `Global`, every object a `StandIn` that only holds data. Time and memory are bounded by
construction: each instruction of a pickle takes constant time, and the objects that it makes are charged to a budget.
Long texts and bytes are skipped; they stay in the file until they are asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, final

BUDGET = 300_000_000  # bytes of objects
LONG = 1 << 16  # bytes of a text or a byte string that stays in the file
LINE = 4096  # bytes of a line of the text protocol
LARGEST = 1 << 60  # numbers beyond are kept as text
LARGEST_KEY = 1 << 16  # likewise for keys of dicts: the hashes of larger ones could be made to collide
LONGEST_NAME = 500


class PickleError(Exception):
    """The pickle is damaged, or asks for more than it may."""


@final
@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function, such as `collections.OrderedDict`."""

    name: str


@final
@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that stay in the file. `latin1` ones are stored as UTF-8 of Latin-1 text, as protocol 2 does."""

    start: int
    size: int
    latin1: bool = False


@final
@dataclass(slots=True, eq=False, repr=False)
class StandIn:
    """The data of an object of any class: the arguments of its constructor, its state, and what it contains."""

    name: str
    arguments: tuple = ()
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)


Make = Callable[[str, tuple], Any]
Persistent = Callable[[Any], Any]
_MARK = object()


def read_pickle(file: BinaryIO, *, size: int, make: Make, persistent: Persistent, charge: Callable[[int], None]) -> Any:
    """Return the content of the pickle that begins at the file's position, and move behind it.

    Args:
        file: A seekable file.
        size: The end of the file, in bytes.
        make: Called with a global's name and arguments where the pickle would call it; returns plain data, or
            NotImplemented for a stand-in.
        persistent: Called with an identity that the pickle refers to.
        charge: Called with the bytes of objects; raises PickleError beyond the budget.

    Raises:
        PickleError: If the pickle is damaged or exceeds a limit.
    """
    try:
        return _Reader(file, size, make, persistent, charge).read()
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, struct.error, OverflowError) as error:
        raise PickleError(f"its pickle is damaged ({type(error).__name__})") from None


def budget(limit: int = BUDGET) -> Callable[[int], None]:
    """Return a function that takes bytes from a budget and raises PickleError when it is used up.

    >>> take = budget(10)
    >>> take(9)
    >>> take(2)
    Traceback (most recent call last):
    checkpointkd.checkpoints.inert_pickle.PickleError: its pickle makes more than 0 MB of objects
    """
    left = limit

    def charge(count: int) -> None:
        nonlocal left
        left -= count
        if left < 0:
            raise PickleError(f"its pickle makes more than {limit // 1_000_000} MB of objects")

    return charge


class _Reader:
    """One pickle. The methods are named by the instructions of `pickletools`."""

    def __init__(
        self, file: BinaryIO, size: int, make: Make, persistent: Persistent, charge: Callable[[int], None]
    ) -> None:
        self.file, self.size, self.make, self.persistent, self.charge = file, size, make, persistent, charge
        self.stack: list[Any] = []
        self.memo: dict[str, Any] = {}  # by texts, whose hashes cannot be made to collide
        self.places: dict[int, list[str]] = {}  # of stand-ins in the memo

    def read(self) -> Any:
        while code := self.file.read(1):
            if code == b".":
                return self.stack.pop()
            self.charge(48)
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise PickleError(f"its pickle has the instruction {code!r}, which no checkpoint needs")
            instruction(self)
        raise PickleError("its pickle ends too early")

    # Arguments of instructions

    def take(self, count: int) -> bytes:
        content = self.file.read(count) if count <= LONG else b""
        if len(content) != count:
            raise PickleError("its pickle ends too early")
        return content

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> bytes:
        content = self.file.readline(LINE)
        if not content.endswith(b"\n"):
            raise PickleError("its pickle has a line that does not end")
        return content[:-1]

    def push(self, value: Any, charged: int = 64) -> None:
        self.charge(charged)
        self.stack.append(value)

    def push_bytes(self, count: int, decode: Callable[[bytes], Any]) -> None:
        start = self.file.tell()
        if not 0 <= count <= self.size - start:
            raise PickleError("its pickle ends too early")
        if count > LONG:
            self.file.seek(start + count)
            self.push(Blob(start, count))
        else:
            self.push(decode(self.take(count)), 64 + 2 * count)

    def marked(self) -> list[Any]:
        """Remove and return the values above the last mark."""
        for position in range(len(self.stack) - 1, -1, -1):
            if self.stack[position] is _MARK:
                values = self.stack[position + 1 :]
                del self.stack[position:]
                return values
        raise PickleError("its pickle has no mark")

    # Constants

    def push_line(self, decode: Callable[[bytes], Any]) -> None:
        line = self.line()
        self.push(decode(line), 64 + 6 * len(line))

    def integer(self) -> None:
        text = self.line()
        self.push(text == b"01" if text in (b"00", b"01") else _decimal(text))

    def long(self, count: int) -> None:
        content = self.take(count) if 0 <= count <= 1024 else b""
        if len(content) != count:
            raise PickleError("its pickle has a number of more than 1,024 bytes")
        self.push(_small(int.from_bytes(content, "little", signed=True)), 64 + 4 * count)

    # Memory

    def put(self, index: int) -> None:
        self.charge(150)
        value = self.memo[str(index)] = self.stack[-1]
        if isinstance(value, StandIn):
            self.places.setdefault(id(value), []).append(str(index))

    # Containers

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        self.charge(8 * len(values))
        (target.items if isinstance(target, StandIn) else target).extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.entries if isinstance(target, StandIn) else target
        if not isinstance(entries, dict) or len(values) % 2:
            raise PickleError("its pickle is damaged (entries of no dict)")
        self.charge(100 * (len(values) // 2))
        for key, value in zip(values[::2], values[1::2], strict=True):
            entries[safe_key(key)] = value

    def dictionary(self, values: list[Any]) -> None:
        self.push({})
        self.set_items(values)

    # Objects

    def call(self, function: Any, arguments: Any) -> None:
        arguments = arguments if isinstance(arguments, tuple) else ()
        if isinstance(function, StandIn):
            self.push(StandIn(function.name, arguments), 400)
            return
        if not isinstance(function, Global):
            raise PickleError("its pickle calls something that is not a function")
        self.charge(400)
        made = self.make(function.name, arguments)
        self.stack.append(StandIn(function.name, arguments) if made is NotImplemented else made)

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise PickleError("its pickle names a global by something else than text")
        self.push_global(module, name)

    def push_global(self, module: str, name: str) -> None:
        if len(module) + len(name) > LONGEST_NAME:
            raise PickleError("its pickle names a global of more than 500 characters")
        self.push(Global(f"{module}.{name}"), 200)

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, StandIn):
            self.charge(400)
            made = self.stack[-1] = _with_state(target, state, self.make)
            for index in self.places.pop(id(target), []) if made is not target else []:
                self.memo[index] = made

    def persistent_id(self, identity: Any) -> None:
        self.push(self.persistent(identity), 200)

    def reduce(self) -> None:
        arguments = self.stack.pop()
        self.call(self.stack.pop(), arguments)

    def new_object_ex(self) -> None:
        keywords, arguments = self.stack.pop(), self.stack.pop()
        self.call(self.stack.pop(), arguments)
        if isinstance(self.stack[-1], StandIn) and isinstance(keywords, dict):
            self.stack[-1].state = keywords


def _with_state(target: StandIn, state: Any, make: Make) -> Any:
    """Give an object its state. Some objects, such as NumPy's arrays, are complete only then."""
    target.state = state
    made = make(f"{target.name}.__setstate__", (target,))
    return target if made is NotImplemented else made


def safe_key(key: Any) -> Any:
    """Return a key whose hash is quick and whose collisions cannot be made."""
    if isinstance(key, str | bytes | bool | StandIn | Global | None) or (
        isinstance(key, int) and abs(key) < LARGEST_KEY
    ):
        return key
    if isinstance(key, int | float):
        return str(key)
    if isinstance(key, tuple) and len(key) <= 8 and all(_is_short(part) for part in key):
        return str(key)
    return f"<{type(key).__name__} {id(key)}>"


def _is_short(part: Any) -> bool:
    return part is None or isinstance(part, int) or (isinstance(part, str) and len(part) <= 200)


def _decimal(digits: bytes) -> int | str:
    return _small(int(digits)) if len(digits) <= 20 else _latin1(digits)


def _small(number: int) -> int | str:
    return number if abs(number) < LARGEST else hex(number)


def _text(content: bytes) -> str:
    return content.decode("utf-8", "backslashreplace")


def _latin1(content: bytes) -> str:
    return content.decode("latin1")


def _quoted(line: bytes) -> str:
    """Return the text of Python 2's protocol 0, without its quotes; escapes in it are kept as they are."""
    return _latin1(line[1:-1])


def _inst(reader: _Reader) -> None:
    reader.push_global(_text(reader.line()), _text(reader.line()))
    kind = reader.stack.pop()
    reader.call(kind, tuple(reader.marked()))


def _obj(reader: _Reader) -> None:
    kind, *arguments = reader.marked()
    reader.call(kind, tuple(arguments))


def _tuple(count: int) -> Callable[[_Reader], None]:
    def instruction(reader: _Reader) -> None:
        values = tuple(reader.stack[-count:])
        if len(values) != count or any(value is _MARK for value in values):
            raise PickleError("its pickle is damaged (a tuple of too few values)")
        del reader.stack[-count:]
        reader.push(values)

    return instruction


def _set_item(reader: _Reader) -> None:
    value, key = reader.stack.pop(), reader.stack.pop()
    reader.set_items([key, value])


_INSTRUCTIONS: dict[bytes, Callable[[_Reader], Any]] = {
    b"\x80": lambda r: r.take(1),  # PROTO
    b"\x95": lambda r: r.take(8),  # FRAME
    b"(": lambda r: r.push(_MARK, 8),
    b"0": lambda r: r.stack.pop(),
    b"1": lambda r: r.marked(),  # POP_MARK
    b"2": lambda r: r.push(r.stack[-1], 8),  # DUP
    b"N": lambda r: r.push(None, 8),
    b"\x88": lambda r: r.push(True, 8),
    b"\x89": lambda r: r.push(False, 8),
    b"K": lambda r: r.push(r.number("<B"), 32),
    b"M": lambda r: r.push(r.number("<H"), 32),
    b"J": lambda r: r.push(r.number("<i"), 32),
    b"I": lambda r: r.integer(),
    b"L": lambda r: r.push_line(lambda line: _decimal(line.rstrip(b"L"))),
    b"\x8a": lambda r: r.long(r.number("<B")),
    b"\x8b": lambda r: r.long(r.number("<i")),
    b"F": lambda r: r.push_line(float),
    b"G": lambda r: r.push(r.number(">d"), 32),
    b"S": lambda r: r.push_line(_quoted),
    b"V": lambda r: r.push_line(lambda line: line.decode("raw-unicode-escape")),
    b"U": lambda r: r.push_bytes(r.number("<B"), _latin1),
    b"T": lambda r: r.push_bytes(r.number("<i"), _latin1),
    b"X": lambda r: r.push_bytes(r.number("<I"), _text),
    b"\x8c": lambda r: r.push_bytes(r.number("<B"), _text),
    b"\x8d": lambda r: r.push_bytes(r.number("<Q"), _text),
    b"C": lambda r: r.push_bytes(r.number("<B"), bytes),
    b"B": lambda r: r.push_bytes(r.number("<I"), bytes),
    b"\x8e": lambda r: r.push_bytes(r.number("<Q"), bytes),
    b"\x96": lambda r: r.push_bytes(r.number("<Q"), bytes),  # BYTEARRAY8
    b")": lambda r: r.push((), 8),
    b"t": lambda r: r.push(tuple(r.marked())),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"]": lambda r: r.push([], 80),
    b"l": lambda r: r.push(r.marked(), 80),
    b"a": lambda r: r.append([r.stack.pop()]),
    b"e": lambda r: r.append(r.marked()),
    b"}": lambda r: r.push({}, 100),
    b"d": lambda r: r.dictionary(r.marked()),
    b"s": _set_item,
    b"u": lambda r: r.set_items(r.marked()),
    b"\x8f": lambda r: r.push([], 80),  # a set, as a list: its values need no hash
    b"\x90": lambda r: r.append(r.marked()),
    b"\x91": lambda r: r.push(tuple(r.marked())),  # a frozen set
    b"p": lambda r: r.put(int(r.line()[:20])),
    b"q": lambda r: r.put(r.number("<B")),
    b"r": lambda r: r.put(r.number("<I")),
    b"\x94": lambda r: r.put(len(r.memo)),
    b"g": lambda r: r.push(r.memo[str(int(r.line()[:20]))], 8),
    b"h": lambda r: r.push(r.memo[str(r.number("<B"))], 8),
    b"j": lambda r: r.push(r.memo[str(r.number("<I"))], 8),
    b"c": lambda r: r.push_global(_text(r.line()), _text(r.line())),
    b"\x93": lambda r: r.stack_global(),
    b"R": lambda r: r.reduce(),
    b"b": lambda r: r.build(),
    b"i": _inst,
    b"o": _obj,
    b"\x81": lambda r: r.reduce(),  # NEWOBJ
    b"\x92": lambda r: r.new_object_ex(),
    b"P": lambda r: r.persistent_id(_text(r.line())),
    b"Q": lambda r: r.persistent_id(r.stack.pop()),
}
