"""A small QR reader for tests, written from ISO/IEC 18004: the matrix of an undamaged symbol back to its text.

Sampling is given (a matrix, or our own PNG), so there is no image processing and no error correction: every codeword
must be right. Independent of segno but for nothing: the block tables are those of the versions that codes here have.
"""

from __future__ import annotations

import struct
import zlib

ALPHANUMERIC = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:"
M_BLOCKS = {
    # version: ((number of blocks, data codewords), ...) for level M; error correction codewords a block
    5: (((2, 43),), 24),
    6: (((4, 27),), 16),
    7: (((4, 31),), 18),
    8: (((2, 38), (2, 39)), 22),
    9: (((3, 36), (2, 37)), 22),
    10: (((4, 43), (1, 44)), 26),
    11: (((1, 50), (4, 51)), 30),
    12: (((6, 36), (2, 37)), 22),
    13: (((8, 37), (1, 38)), 22),
    14: (((4, 40), (5, 41)), 24),
    15: (((5, 41), (5, 42)), 24),
    16: (((7, 45), (3, 46)), 28),
    17: (((10, 46), (1, 47)), 28),
    18: (((9, 43), (4, 44)), 26),
}
ALIGNMENT = {
    5: (6, 30),
    6: (6, 34),
    7: (6, 22, 38),
    8: (6, 24, 42),
    9: (6, 26, 46),
    10: (6, 28, 50),
    11: (6, 30, 54),
    12: (6, 32, 58),
    13: (6, 34, 62),
    14: (6, 26, 46, 66),
    15: (6, 26, 48, 70),
    16: (6, 26, 50, 74),
    17: (6, 30, 54, 78),
    18: (6, 30, 56, 82),
}
MASKS = (
    lambda i, j: (i + j) % 2 == 0,
    lambda i, j: i % 2 == 0,
    lambda i, j: j % 3 == 0,
    lambda i, j: (i + j) % 3 == 0,
    lambda i, j: (i // 2 + j // 3) % 2 == 0,
    lambda i, j: i * j % 2 + i * j % 3 == 0,
    lambda i, j: (i * j % 2 + i * j % 3) % 2 == 0,
    lambda i, j: ((i + j) % 2 + i * j % 3) % 2 == 0,
)


def read_symbol(matrix: list[list[int]]) -> str:
    """The text in a symbol's modules (1 = dark), without quiet zone. Raises ValueError for what it does not know."""
    size = len(matrix)
    version = (size - 17) // 4
    form = 0
    for row, column in [(8, c) for c in (0, 1, 2, 3, 4, 5, 7, 8)] + [(r, 8) for r in (7, 5, 4, 3, 2, 1, 0)]:
        form = form << 1 | matrix[row][column] & 1
    form ^= 0b101010000010010
    if form >> 13 != 0b00:
        raise ValueError("not level M")
    mask = MASKS[form >> 10 & 0b111]
    bits = [
        (matrix[row][column] & 1) ^ mask(row, column)
        for row, column in _path(size)
        if not _is_function(row, column, size, version)
    ]
    codewords = [int("".join(map(str, bits[at : at + 8])), 2) for at in range(0, len(bits) - 7, 8)]
    return _text(_data(codewords, version), version)


def _path(size: int) -> list[tuple[int, int]]:
    """Two columns at a time from the right, up and down in turn, the vertical timing column left out."""
    found, up = [], True
    column = size - 1
    while column > 0:
        if column == 6:
            column -= 1
        rows = range(size - 1, -1, -1) if up else range(size)
        for row in rows:
            found += [(row, column), (row, column - 1)]
        up, column = not up, column - 2
    return found


def _is_function(row: int, column: int, size: int, version: int) -> bool:
    if 6 in (row, column):
        return True
    if (row < 9 and column < 9) or (row < 9 and column >= size - 8) or (row >= size - 8 and column < 9):
        return True
    if version >= 7 and ((row < 6 and column >= size - 11) or (column < 6 and row >= size - 11)):
        return True
    places = ALIGNMENT[version]
    corners = {(places[0], places[0]), (places[0], places[-1]), (places[-1], places[0])}
    return any(abs(row - r) <= 2 and abs(column - c) <= 2 for r in places for c in places if (r, c) not in corners)


def _data(codewords: list[int], version: int) -> list[int]:
    """The blocks' data codewords in their order: interleaved they are, one of each block in turn."""
    groups, _ = M_BLOCKS[version]
    lengths = [length for count, length in groups for _ in range(count)]
    blocks: list[list[int]] = [[] for _ in lengths]
    at = 0
    for place in range(max(lengths)):
        for block, length in zip(blocks, lengths, strict=True):
            if place < length:
                block.append(codewords[at])
                at += 1
    return [codeword for block in blocks for codeword in block]


def _text(data: list[int], version: int) -> str:
    bits = "".join(f"{codeword:08b}" for codeword in data)
    at, text = 0, ""

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at] or "0", 2)

    while at + 4 <= len(bits):
        mode = take(4)
        if mode == 0:
            break
        if mode == 1:
            count = take(10 if version < 10 else 12)
            while count:
                digits = min(3, count)
                text += f"{take({3: 10, 2: 7, 1: 4}[digits]):0{digits}d}"
                count -= digits
        elif mode == 2:
            count = take(9 if version < 10 else 11)
            while count > 1:
                first, second = divmod(take(11), 45)
                text += ALPHANUMERIC[first] + ALPHANUMERIC[second]
                count -= 2
            if count:
                text += ALPHANUMERIC[take(6)]
        elif mode == 4:
            count = take(8 if version < 10 else 16)
            text += bytes(take(8) for _ in range(count)).decode("ascii")
        else:
            raise ValueError(f"mode {mode}")
    return text


def read_png(data: bytes, *, scale: int) -> str:
    """The text of a symbol in a PNG of ours: grey or palette of one bit, quiet zone of four modules."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError("not a PNG")
    at, packed, width, height = 8, b"", 0, 0
    dark_is = 0
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        chunk = data[at + 8 : at + 8 + length]
        if name == b"IHDR":
            width, height, depth, _ = struct.unpack(">IIBB", chunk[:10])
            if depth != 1:
                raise ValueError("not one bit a pixel")
        elif name == b"PLTE":
            dark_is = 0 if sum(chunk[:3]) < sum(chunk[3:6]) else 1
        elif name == b"IDAT":
            packed += chunk
        at += 12 + length
    raw = zlib.decompress(packed)
    line_bytes = (width + 7) // 8
    rows, before = [], bytes(line_bytes)
    for y in range(height):
        line = raw[y * (line_bytes + 1) : (y + 1) * (line_bytes + 1)]
        kind_of_filter, body = line[0], bytearray(line[1:])
        for x in range(line_bytes):
            left, above = (body[x - 1] if x else 0), before[x]
            body[x] = (body[x] + {0: 0, 1: left, 2: above}[kind_of_filter]) & 0xFF
        before = bytes(body)
        rows.append([int((before[x // 8] >> (7 - x % 8) & 1) == dark_is) for x in range(width)])
    middle = scale // 2
    modules = width // scale - 8
    return read_symbol(
        [[rows[(4 + r) * scale + middle][(4 + c) * scale + middle] for c in range(modules)] for r in range(modules)]
    )
