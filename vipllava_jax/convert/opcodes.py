"""Decodes a pickle's opcodes and their arguments, all of bounded size."""

import pickletools
import struct
from collections.abc import Callable
from typing import Any

LONGEST_LINE = 1 << 16  # bytes of an argument that ends with its line
LONGEST_INTEGER = 16  # bytes; PyTorch's sizes have 8


class Program:
    """A cursor over the bytes of a pickle; reading beyond the end is a ValueError."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise ValueError('the pickle ends in the middle of an opcode')
        self.at += size
        return self.data[self.at - size : self.at]

    def opcode(self) -> int:
        if self.at == len(self.data):
            raise ValueError('the pickle ends without STOP')
        self.at += 1
        return self.data[self.at - 1]

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), 'little', signed=signed)

    def line(self) -> bytes:
        end = self.data.find(b'\n', self.at, self.at + LONGEST_LINE)
        if end < 0:
            raise ValueError('an argument without a line end')
        return self.take(end - self.at + 1)[:-1]


def _decimal(line: bytes) -> int:
    if len(line) > 2 * LONGEST_INTEGER:
        raise ValueError(f'an integer of {len(line)} digits')
    return int(line.decode('ascii'))


def _integer(program: Program) -> int | bool:
    """The argument of INT, in which 01 and 00 mean True and False."""
    line = program.line()
    return line == b'01' if line in (b'00', b'01') else _decimal(line)


def _long(size: int) -> Callable[[Program], int]:
    def read(program: Program) -> int:
        if (length := program.number(size)) > LONGEST_INTEGER:
            raise ValueError(f'an integer of {length} bytes')
        return program.number(length, signed=True)

    return read


def _text(size: int) -> Callable[[Program], str]:
    return lambda program: program.take(program.number(size)).decode('utf-8')


def _bytes(size: int) -> Callable[[Program], bytes]:
    return lambda program: program.take(program.number(size))


def _unicode(program: Program) -> str:
    return program.line().decode('raw-unicode-escape')


CONSTANTS: dict[int, Callable[[Program], Any]] = {
    **{ord('N'): lambda _: None, 0x88: lambda _: True, 0x89: lambda _: False},
    **{ord('I'): _integer, ord('L'): lambda program: _decimal(program.line().removesuffix(b'L'))},
    **{ord('K'): lambda program: program.number(1), ord('M'): lambda program: program.number(2)},
    **{ord('J'): lambda program: program.number(4, signed=True), 0x8A: _long(1), 0x8B: _long(4)},
    **{ord('F'): lambda program: float(program.line()[:64])},
    **{ord('G'): lambda program: struct.unpack('>d', program.take(8))[0]},
    **{ord('V'): _unicode, 0x8C: _text(1), ord('X'): _text(4), 0x8D: _text(8)},
    **{ord('U'): _text(1), ord('T'): _text(4)},  # from Python 2
    **{ord('C'): _bytes(1), ord('B'): _bytes(4), 0x8E: _bytes(8)},
}


def name_of(opcode: int) -> str:
    """The name of an opcode, such as 'BUILD', or its number if it is unknown."""
    known = next((each.name for each in pickletools.opcodes if each.code == chr(opcode)), None)
    return known or f'0x{opcode:02x}'
