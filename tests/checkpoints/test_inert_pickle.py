"""The reader of pickles: equal to Python's for plain data, and bounded for any bytes."""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import resource
import struct
import time
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from checkpointkd.checkpoints.inert_pickle import Blob, Global, PickleError, StandIn, budget, read_pickle
from checkpointkd.checkpoints.torch_files import opened
from checkpointkd.errors import UserError


def _read(content: bytes) -> Any:
    return read_pickle(
        io.BytesIO(content),
        size=len(content),
        make=lambda name, arguments: NotImplemented,
        persistent=lambda identity: identity,
        charge=budget(),
    )


keys = st.text(max_size=5) | st.integers(-1000, 1000) | st.booleans() | st.none() | st.binary(max_size=4)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**59), 2**59)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
    max_leaves=30,
)


@hypothesis.given(value=values, protocol=st.integers(0, 5))
@hypothesis.settings(deadline=None, max_examples=300)
def test_plain_data_is_read_as_python_reads_it(value: Any, protocol: int):
    content = pickle.dumps(value, protocol)
    if protocol < 3:
        hypothesis.assume(b"_codecs" not in content and b"__builtin__" not in content)  # bytes were calls then
    assert _read(content) == value


def test_shared_and_circular_data_stay_so():
    shared: list[Any] = [1]
    circular: dict[str, Any] = {"a": shared, "b": shared}
    circular["self"] = circular
    read = _read(pickle.dumps(circular))
    assert read["a"] is read["b"]
    assert read["self"] is read


class Tagged:
    def __init__(self) -> None:
        self.tags = {"a": [1, 2]}


def test_an_object_becomes_its_data():
    read = _read(pickle.dumps(Tagged()))
    assert isinstance(read, StandIn)
    assert read.name.endswith("test_inert_pickle.Tagged")
    assert read.state == {"tags": {"a": [1, 2]}}
    assert _read(pickle.dumps(Tagged)) == Global(read.name)


def test_long_texts_stay_in_the_file():
    content = pickle.dumps(["x" * 100_000, b"y" * 100_000])
    text, data = _read(content)
    assert isinstance(text, Blob)
    assert content[data.start : data.start + data.size] == b"y" * 100_000


def _nested_tuples() -> bytes:
    """A tuple of two equal tuples, 60 deep, as a key: its hash would take 2⁶⁰ steps."""
    return b"}(" + b"K\x00\x85q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01u."


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "no stop": b"]",
    "empty stack": b".",
    "pop nothing": b"0.",
    "huge memo index": b"]r\xff\xff\xff\xff.",
    "memo of text index": b"]p99999999999999\n.",
    "absent memo": b"h\x05.",
    "tuple keys": _nested_tuples(),
    "tuple of tuples": b"K\x00\x85q\x00" + b"h\x00h\x00\x86q\x00" * 100_000 + b".",
    "deep lists": b"]" * 500_000 + b"a" * 499_999 + b".",
    "deep tuples": b")" + b"\x85" * 500_000 + b".",
    "many lists": b"(" + b"]" * 20_000_000 + b"l.",
    "many marks": b"(" * 5_000_000 + b".",
    "marks popped": b"(1" * 2_000_000 + b"N.",
    "list doubled": b"](K\x01e" + b"q\x00(" + b"h\x00" * 1000 + b"e" * 1 + b".",
    "claimed bytes": b"B" + struct.pack("<I", 2**32 - 1) + b"x.",
    "claimed bytes 8": b"\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "claimed bytearray": b"\x96" + struct.pack("<Q", 2**40) + b"x.",
    "claimed text": b"X" + struct.pack("<I", 2**32 - 1) + b"x.",
    "claimed text 8": b"\x8d" + struct.pack("<Q", 2**63) + b"x.",
    "negative string": b"T" + struct.pack("<i", -5) + b"x.",
    "negative long": b"\x8b" + struct.pack("<i", -5) + b"x.",
    "large long": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    "long of 1,000 bytes": b"\x8a\xff" + b"\xff" * 255 + b".",
    "decimal of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "line without end": b"S" + b"x" * 10_000_000,
    "float of text": b"Fabc\n.",
    "extension": b"\x82\x01.",
    "next buffer": b"\x97.",
    "unknown instruction": b"\xff.",
    "bad UTF-8": b"X\x02\x00\x00\x00\xff\xff.",
    "text as global": b"K\x01K\x02\x93.",
    "call of a number": b"K\x01)R.",
    "call of a list": b"])R.",
    "build of a number": b"K\x01}b.",
    "append to a number": b"K\x01K\x02a.",
    "append to a tuple": b")K\x02a.",
    "items of a list": b"](K\x01K\x02u.",
    "odd items": b"}(K\x01u.",
    "persistent": b"K\x01Q.",
    "system": b"cos\nsystem\n(S'touch canary'\ntR.",
    "eval": b"cbuiltins\neval\n(S'1'\ntR.",
    "old instance": b"(S'touch canary'\nios\nsystem\n.",
    "object": b"(cos\nsystem\nS'touch canary'\no.",
    "new object": b"cos\nsystem\nS'touch canary'\n\x85\x81.",
    "new object ex": b"cos\nsystem\nS'touch canary'\n\x85}\x92.",
    "stack global": b"\x8c\x02os\x8c\x06system\x93S'touch canary'\n\x85R.",
    "reduce of reduce": b"cbuiltins\ngetattr\n(cos\nsystem\nS'x'\ntR(tR.",
    "setstate": b"ccodecs\nlookup\n)R}b.",
    "bytearray": b"cbuiltins\nbytearray\n(I3000000000\ntR.",
    "bytes": b"cbuiltins\nbytes\n(I3000000000\ntR.",
    "range": b"cbuiltins\nlist\n(cbuiltins\nrange\n(I3000000000\ntRtR.",
    "codec": b"c_codecs\nencode\n(Vx\nS'idna'\ntR.",
    "codec of a number": b"c_codecs\nencode\n(K\x05S'latin1'\ntR.",
    "codec repeated": b"V" + b"x" * 4000 + b"\nq\x00" + b"c_codecs\nencode\n(h\x00S'latin1'\ntR0" * 200_000 + b"N.",
    "ordered dict of pairs": b"ccollections\nOrderedDict\n(](K\x01K\x02e\x85tR.",
    "tensor of nothing": b"ctorch._utils\n_rebuild_tensor_v2\n(tR.",
    "tensor of numbers": b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03K\x04\x89}tR.",
    "array of nothing": b"cnumpy.core.multiarray\n_reconstruct\n(tR(K\x01K\x02K\x03K\x04K\x05tb.",
    "scalar of nothing": b"cnumpy.core.multiarray\nscalar\n(tR.",
    "size of a number": b"ctorch\nSize\n(K\x05tR.",
    "parameter of nothing": b"ctorch._utils\n_rebuild_parameter\n(tR.",
    "typed": b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nN)NtR.",
    "long name": b"X\x60\xea\x00\x00" + b"x" * 60_000 + b"X\x01\x00\x00\x00C\x93)R" + b"}b" * 400_000 + b".",
    "calls of calls": b"cbuiltins\ngetattr\n)R" + b")R" * 100_000 + b".",
    "long tuple keys": b"}(" + b"".join(b"V" + b"x" * 4000 + b"\nK%c\x86N" % n for n in range(250)) + b"u.",
    "lists copied": b"](" + b"K\x01" * 30_000 + b"eq\x00" + b"cbuiltins\nlist\n(h\x00tR0" * 100_000 + b"N.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_execute_nothing_and_stay_within_bounds(name: str, tmp_path: Path, monkeypatch):
    """Each ends within 10 seconds, and with less than 500 MB, in data or in one error."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.pt"
    path.write_bytes(b"\x80\x02" + HOSTILE[name])
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    message = "hostile.pt"
    try:
        with opened(path) as content:
            del content
    except UserError as error:
        message = str(error)
    assert "hostile.pt" in message
    assert len(message) < 400
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "kilobytes"
    assert [entry.name for entry in tmp_path.iterdir()] == ["hostile.pt"]


@hypothesis.given(content=st.binary(max_size=200))
@hypothesis.settings(deadline=None, max_examples=500)
def test_any_bytes_end_in_data_or_in_one_error(content: bytes):
    with contextlib.suppress(PickleError):
        _read(content)


INSTRUCTIONS = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]


@hypothesis.given(parts=st.lists(st.sampled_from(INSTRUCTIONS) | st.binary(max_size=3), max_size=40))
@hypothesis.settings(deadline=None, max_examples=500)
def test_any_instructions_end_in_data_or_in_one_error(parts: list[bytes]):
    with contextlib.suppress(PickleError):
        _read(b"".join(parts))
