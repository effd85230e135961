"""The zip container of a token store: written by us so that arrays can be mapped, read without trusting a single field.

Every member is stored (never compressed), carries zip64 sizes whether it needs them or not, and has its local header padded
so that its data begin on a 64-byte boundary. Dates are fixed: the same tokens give the same file, byte for byte.
Layout: PKWARE APPNOTE 6.3.9, sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14 to 4.3.16 (ends), 4.5.3 (zip64).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from vctool.errors import StoreError
from vctool.store.format import ALIGNMENT

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")

_VERSION = 45  # 4.5: zip64
_DATE = 0x0021  # 1980-01-01, the earliest a zip can say
_FULL32, _FULL16 = 0xFFFFFFFF, 0xFFFF
_ZIP64_ID = 0x0001
_PADDING_ID = 0xD935  # the alignment field that Android's zipalign writes; other tools skip it
_STORED, _DEFLATED = 0, 8
_LONGEST_COMMENT = 0xFFFF
_MOST_MEMBERS = 1000

_INCOMPLETE = "the write, copy or download was cut short: copy it again, or build it again with `vctool index`"
_DAMAGED = "the file is damaged: copy it again, or build it again with `vctool index`"


@dataclass(frozen=True)
class Member:
    """One member of the archive. `header` is where its local header starts, `data` where its bytes start."""

    name: str
    method: int
    crc: int
    stored_size: int
    size: int
    header: int
    data: int

    @property
    def compressed(self) -> bool:
        return self.method == _DEFLATED


def local_header(name: str, crc: int, size: int, offset: int) -> bytes:
    """The local header of a stored member starting at byte `offset`, padded so that the data after it are aligned."""
    zip64 = struct.pack("<2H2Q", _ZIP64_ID, 16, size, size)
    fixed = _LOCAL.size + len(name) + len(zip64) + 6  # 6: the padding field's id, length and alignment
    padding = -(offset + fixed) % ALIGNMENT
    pad = struct.pack("<3H", _PADDING_ID, 2 + padding, ALIGNMENT) + bytes(padding)
    head = _LOCAL.pack(b"PK\3\4", _VERSION, 0, _STORED, 0, _DATE, crc, _FULL32, _FULL32, len(name), len(zip64) + len(pad))
    return head + name.encode("ascii") + zip64 + pad


def directory(members: Sequence[Member], offset: int) -> bytes:
    """The central directory and the three end records of an archive whose directory starts at byte `offset`."""
    parts = []
    for m in members:
        zip64 = struct.pack("<2H3Q", _ZIP64_ID, 24, m.size, m.size, m.header)
        parts.append(
            _CENTRAL.pack(
                b"PK\1\2", _VERSION, _VERSION, 0, _STORED, 0, _DATE, m.crc, _FULL32, _FULL32, len(m.name), len(zip64), 0, 0, 0, 0, _FULL32
            )
            + m.name.encode("ascii")
            + zip64
        )
    entries = b"".join(parts)
    end64 = _END64.pack(b"PK\6\6", _END64.size - 12, _VERSION, _VERSION, 0, 0, len(members), len(members), len(entries), offset)
    locator = _LOCATOR64.pack(b"PK\6\7", 0, offset + len(entries), 1)
    end = _END.pack(b"PK\5\6", 0, 0, _FULL16, _FULL16, _FULL32, _FULL32, 0)
    return entries + end64 + locator + end


class ArchiveWriter:
    """Writes members one after another to an open, empty, seekable file; `finish` writes the directory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.members: list[Member] = []

    def add(self, name: str, size: int, blocks: Iterable[bytes | memoryview]) -> None:
        """Append a member of exactly `size` bytes, given in blocks."""
        start = self._file.tell()
        # The checksum goes in front of the data it sums, so the header is written twice.
        head = local_header(name, 0, size, start)
        self._file.write(head)
        crc, written = 0, 0
        for block in blocks:
            crc = zlib.crc32(block, crc)
            written += self._file.write(block)
        if written != size:
            raise StoreError(f"member {name!r} has {written} bytes, {size} were announced", "this is a defect in vctool: please report it")
        self._file.seek(start)
        self._file.write(local_header(name, crc, size, start))
        self._file.seek(start + len(head) + size)
        self.members.append(Member(name, _STORED, crc, size, size, start, start + len(head)))

    def finish(self) -> None:
        """Write the directory: from here on the file is a complete archive."""
        self._file.write(directory(self.members, self._file.tell()))


def read_members(data: memoryview, where: str) -> list[Member]:
    """The archive's members, every offset and size checked against the file's length.

    Raises StoreError, in one line that says what to do, if `data` is not a complete zip file of plain members.
    """
    if len(data) < 4 or bytes(data[:2]) != b"PK":
        raise StoreError(f"{where}: not a token store (it is not an .npz file)", "give the .npz file that `vctool index -o` wrote")
    try:
        members = _parse(data, where)
    except (struct.error, IndexError) as problem:
        raise StoreError(f"{where}: its zip directory is damaged ({problem})", _DAMAGED) from None
    names = [m.name for m in members]
    for name in names:
        if names.count(name) > 1:
            raise StoreError(f"{where}: member {name!r} appears twice", "a store is never appended to in place: build it again")
    return members


def _parse(data: memoryview, where: str) -> list[Member]:
    end = _find_end(data, where)
    _, _, _, _, count, size, offset, _ = _END.unpack_from(data, end)
    locator = end - _LOCATOR64.size
    if locator >= 0 and bytes(data[locator : locator + 4]) == b"PK\6\7":
        _, _, end64, _ = _LOCATOR64.unpack_from(data, locator)
        if end64 + _END64.size > locator or bytes(data[end64 : end64 + 4]) != b"PK\6\6":
            raise StoreError(f"{where}: incomplete: its end record points outside the file", _INCOMPLETE)
        *_, count, size, offset = _END64.unpack_from(data, end64)
    if offset + size > end:
        raise StoreError(f"{where}: incomplete: its directory points outside the file", _INCOMPLETE)
    if count > _MOST_MEMBERS:
        raise StoreError(f"{where}: {count} members: not a token store", "give the .npz file that `vctool index -o` wrote")
    members, position = [], offset
    for _ in range(count):
        member, position = _parse_entry(data, position, offset + size, where)
        members.append(member)
    return members


def _find_end(data: memoryview, where: str) -> int:
    # Only a comment can follow the end record; 64 KiB is the longest a comment can be.
    start = max(0, len(data) - _LONGEST_COMMENT - _END.size)
    tail = bytes(data[start:])
    position = len(tail)
    while (position := tail.rfind(b"PK\5\6", 0, position)) >= 0:
        if position + _END.size <= len(tail):
            comment = int.from_bytes(tail[position + 20 : position + 22], "little")
            if position + _END.size + comment == len(tail):
                return start + position
    raise StoreError(f"{where}: incomplete: the file ends early or has bytes appended", _INCOMPLETE)


def _parse_entry(data: memoryview, position: int, limit: int, where: str) -> tuple[Member, int]:
    fields = _CENTRAL.unpack_from(data[:limit], position)
    signature, flags, method, crc = fields[0], fields[3], fields[4], fields[7]
    stored_size, size, name_length, extra_length, comment_length, header = *fields[8:10], *fields[10:13], fields[16]
    names = position + _CENTRAL.size
    after = names + name_length + extra_length + comment_length
    if signature != b"PK\1\2" or after > limit:
        raise StoreError(f"{where}: its zip directory is damaged", _DAMAGED)
    try:
        name = bytes(data[names : names + name_length]).decode("utf-8")
    except UnicodeDecodeError:
        raise StoreError(f"{where}: its zip directory is damaged (a member's name)", _DAMAGED) from None
    extra = data[names + name_length : names + name_length + extra_length]
    size, stored_size, header = _zip64(extra, size, stored_size, header)
    if flags & 1:
        raise StoreError(f"{where}: member {name!r} is encrypted", "a token store is a plain .npz file")
    if method not in (_STORED, _DEFLATED):
        raise StoreError(f"{where}: member {name!r} is packed with method {method}", "save it with numpy.savez, or build it again")
    start = _data_start(data, name, header, where)
    if start + stored_size > len(data):
        raise StoreError(f"{where}: incomplete: member {name!r} ends outside the file", _INCOMPLETE)
    # Deflate cannot expand more than 1032-fold: a larger claim is a lie that would only exhaust memory.
    if size != stored_size if method == _STORED else size > 1032 * stored_size + 64:
        raise StoreError(f"{where}: the sizes of member {name!r} do not agree", _DAMAGED)
    return Member(name, method, crc, stored_size, size, header, start), after


def _zip64(extra: memoryview, size: int, stored_size: int, header: int) -> tuple[int, int, int]:
    values = [size, stored_size, header]
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == _ZIP64_ID:
            field = extra[position + 4 : position + 4 + length]
            wanted = [i for i, value in enumerate(values) if value == _FULL32]
            for i, value in zip(wanted, struct.unpack_from(f"<{len(wanted)}Q", field), strict=True):
                values[i] = value
            break
        position += 4 + length
    return values[0], values[1], values[2]


def _data_start(data: memoryview, name: str, header: int, where: str) -> int:
    if header + _LOCAL.size > len(data):
        raise StoreError(f"{where}: incomplete: member {name!r} starts outside the file", _INCOMPLETE)
    fields = _LOCAL.unpack_from(data, header)
    start = header + _LOCAL.size
    if fields[0] != b"PK\3\4" or bytes(data[start : start + fields[9]]) != name.encode("utf-8"):
        raise StoreError(f"{where}: member {name!r} is not where the directory says", _DAMAGED)
    return int(start + fields[9] + fields[10])


def inflate(data: memoryview, member: Member, where: str) -> memoryview:
    """The bytes of a compressed member, in memory; raises StoreError if they do not unpack to what was announced."""
    packed = data[member.data : member.data + member.stored_size]
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = stream.decompress(packed, member.size + 1)
    except zlib.error as problem:
        raise StoreError(f"{where}: member {member.name!r} does not unpack ({problem})", _DAMAGED) from None
    if len(plain) != member.size or zlib.crc32(plain) != member.crc:
        raise StoreError(f"{where}: member {member.name!r} does not match its checksum", _DAMAGED)
    return memoryview(plain)


def same_container(data: memoryview, members: Sequence[Member]) -> bool:
    """Whether every byte that is not array data is exactly what `ArchiveWriter` would have written."""
    position = 0
    for m in members:
        expected = local_header(m.name, m.crc, m.size, position)
        if m.header != position or m.compressed or bytes(data[position : position + len(expected)]) != expected:
            return False
        position = m.data + m.size
    return bytes(data[position:]) == directory(members, position)
