"""Where a MessagePack value ends, without building it: for files in which one follows the other.

Pure. msgspec decodes one value and calls bytes behind it an error; a stream of values has to be taken apart first.
"""

from __future__ import annotations

__all__ = ["end_of"]

# By type byte: how many bytes follow at once; of how many bytes a length is, and what one unit of it adds.
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_FIXED |= {0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}  # fixext: the type and its data
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bin, str: bytes of the length
_EXT = {0xC7: 1, 0xC8: 2, 0xC9: 4}  # the same, and one byte for the type
_ITEMS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # array, map: bytes of the count, values per item


def end_of(data: bytes, start: int) -> int | None:
    """The offset behind the value at `start`; None when `data` ends before it. Raises ValueError for bytes that are no value.

    Nothing is allocated by a length that the data claims.
    """
    position, wanted = start, 1
    while wanted:
        wanted -= 1
        if position >= len(data):
            return None
        code = data[position]
        position += 1
        if code in _FIXED:
            position += _FIXED[code]
        elif code in _BYTES or code in _EXT:
            size = _BYTES.get(code) or _EXT[code]
            position += size + int.from_bytes(data[position : position + size]) + (code in _EXT)
        elif code in _ITEMS:
            size, each = _ITEMS[code]
            wanted += each * int.from_bytes(data[position : position + size])
            position += size
        elif 0x80 <= code <= 0x9F:
            wanted += (code & 0x0F) * (2 if code < 0x90 else 1)
        elif 0xA0 <= code <= 0xBF:
            position += code & 0x1F
        elif code == 0xC1:
            raise ValueError(f"byte 0xc1 at {position - 1} is no MessagePack")
    return position if position <= len(data) else None
