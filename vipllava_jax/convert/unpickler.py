"""A restricted unpickler, which runs no code.

A pickle is a program for a machine with a stack and a memo, and Python's own machine imports and calls
whatever the program names. This one supports only the opcodes that dicts of tensors need, and builds plain
records: nothing is imported or called, and a container cannot change once it is part of another. Depth,
memory and time are bounded by the size of the program. Only strings are hashed: the hashes of other values,
even integers, can be made to collide, so that a dict of them takes hours to fill.
"""

from collections.abc import Callable, Iterable
from typing import Any

from vipllava_jax.convert.opcodes import CONSTANTS, Program, name_of
from vipllava_jax.convert.records import (
    CONSTRUCTORS,
    STORAGES,
    Compound,
    Global,
    Refused,
    Storage,
    allowed,
    is_size,
    type_of,
)

MAX_STEPS = 1 << 20  # a tensor takes about 60 steps, so these are enough for 17,000 tensors
DEEPEST = 32  # containers inside one another; a state dict has 4
NEWEST_PROTOCOL = 5
STOP = ord('.')


def unpickle(data: bytes) -> Any:
    """The result of a pickle: a Compound, a View, a Storage, a Global or a plain value.

    Raises ValueError for a broken pickle, and Refused for one that needs anything else.
    """
    return _Machine(data).run()


class _Machine:
    def __init__(self, data: bytes):
        self.program = Program(data)
        self.stack: list[Any] = []
        self.marks: list[int] = []  # the height of the stack at each open MARK
        self.memo: dict[str, Any] = {}  # by the index in decimal digits

    def run(self) -> Any:
        program, stack = self.program, self.stack
        for _ in range(MAX_STEPS):
            opcode = program.opcode()
            if constant := CONSTANTS.get(opcode):
                stack.append(constant(program))
            elif operation := OPERATIONS.get(opcode):
                operation(self)
            elif opcode == STOP:
                return self.pop()
            else:
                raise Refused(f'refuses the pickle opcode {name_of(opcode)}, which no tensor needs')
        raise ValueError(f'the pickle has more than {MAX_STEPS} opcodes')

    # The stack

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError('an opcode takes more values from the stack than there are')
        return self.stack[-1]

    def above_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError('an opcode needs a MARK that is not there')
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def duplicate(self) -> None:
        self.stack.append(self.top())

    # The memo

    def put(self, index: int) -> None:
        self.memo[str(index)] = self.top()

    def get(self, index: int) -> None:
        if (place := str(index)) not in self.memo:
            raise ValueError(f'nothing is stored in the memo at {index}')
        self.stack.append(self.memo[place])

    def index(self) -> int:
        """The argument of PUT and GET."""
        line = self.program.line()
        if len(line) > 10 or not line.isdigit():
            raise ValueError('a memo index that is not a number')
        return int(line)

    # Containers

    def make(self, type: str, parts: list[Any]) -> None:
        self.stack.append(Compound(type, tuple(parts) if type == 'tuple' else parts, _depth(parts)))

    def tuple_of(self, size: int) -> None:
        self.make('tuple', [self.pop() for _ in range(size)][::-1])

    def append(self, parts: list[Any]) -> None:
        target = _changeable(self.top(), 'list')
        _join(target, parts)
        target.parts += parts

    def append_one(self) -> None:
        self.append([self.pop()])

    def make_dict(self) -> None:
        parts = self.above_mark()
        self.stack.append(Compound('dict', {}))
        self.set_items(parts)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def set_items(self, parts: list[Any]) -> None:
        if len(parts) % 2:
            raise ValueError('a key without a value')
        target = _changeable(self.top(), 'dict', 'OrderedDict')
        _join(target, parts)
        for key, value in zip(parts[::2], parts[1::2], strict=True):
            if type(key) is not str:
                raise Refused(f'refuses a dict with a key that is {type_of(key)}, not a string')
            if key in target.parts:
                raise ValueError('a key occurs twice in a dict')
            target.parts[key] = value

    # Opcodes with which Python would import, call or change something

    def find(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError('a name that is not a string')
        self.stack.append(allowed(f'{module}.{name}'))

    def find_line(self) -> None:
        module, name = (self.program.line().decode('utf-8') for _ in range(2))
        self.find(module, name)

    def find_stacked(self) -> None:
        name, module = self.pop(), self.pop()
        self.find(module, name)

    def reduce(self) -> None:
        args, called = self.pop(), self.pop()
        constructor = CONSTRUCTORS.get(called.name) if isinstance(called, Global) else None
        if constructor is None:
            raise Refused(f'refuses to call {type_of(called)}')
        if not isinstance(args, Compound) or args.type != 'tuple':
            raise ValueError(f'the arguments of {called.name} are not a tuple')
        try:
            self.stack.append(constructor(*args.parts))
        except TypeError:
            raise ValueError(f'{called.name} is called with {len(args.parts)} arguments') from None

    def build(self) -> None:
        """Drops the attributes of a state dict."""
        self.pop()
        target = self.top()
        if not isinstance(target, Compound) or target.type != 'OrderedDict':
            raise Refused(f'refuses to change {type_of(target)}, which only an attack would do')

    def persistent(self) -> None:
        pid = self.pop()
        match pid.parts if isinstance(pid, Compound) and pid.type == 'tuple' else None:
            case ('storage', Global(name=name), str(key), str(), length) if is_size(length):
                if storage := STORAGES.get(name.rpartition('.')[2]):
                    self.stack.append(Storage(key, *storage, length))
                    return
        raise ValueError('a persistent id that does not name a storage')

    # Opcodes about the pickle itself

    def protocol(self) -> None:
        if (version := self.program.number(1)) > NEWEST_PROTOCOL:
            raise ValueError(f'protocol {version} is unknown')

    def frame(self) -> None:
        if self.program.number(8) > len(self.program.data) - self.program.at:
            raise ValueError('a frame that ends beyond the pickle')


def _changeable(value: Any, *types: str) -> Compound:
    if not isinstance(value, Compound) or value.type not in types:
        raise ValueError(f'expected a {types[0]}, found {type_of(value)}')
    if value.fixed:
        raise ValueError(f'a {types[0]} is changed after it was added to another container')
    return value


def _join(target: Compound, parts: list[Any]) -> None:
    """Fixes parts that are added to a container, which cannot become part of itself."""
    target.depth = max(target.depth, _depth(parts))
    if target.fixed:
        raise ValueError(f'a {target.type} is added to itself')


def _depth(parts: Iterable[Any]) -> int:
    """The depth of a container of these parts, which are fixed from now on."""
    depth = 1
    for part in parts:
        if isinstance(part, Compound):
            part.fixed = True
            depth = max(depth, part.depth + 1)
    if depth > DEEPEST:
        raise ValueError(f'containers nested more than {DEEPEST} deep')
    return depth


OPERATIONS: dict[int, Callable[[_Machine], Any]] = {
    **{ord('('): _Machine.mark, ord('0'): _Machine.pop, ord('1'): _Machine.above_mark},
    **{ord('2'): _Machine.duplicate},
    **{ord('p'): lambda m: m.put(m.index()), ord('q'): lambda m: m.put(m.program.number(1))},
    **{ord('r'): lambda m: m.put(m.program.number(4)), 0x94: lambda m: m.put(len(m.memo))},
    **{ord('g'): lambda m: m.get(m.index()), ord('h'): lambda m: m.get(m.program.number(1))},
    **{ord('j'): lambda m: m.get(m.program.number(4))},
    **{ord(']'): lambda m: m.make('list', []), ord('l'): lambda m: m.make('list', m.above_mark())},
    **{ord('a'): _Machine.append_one, ord('e'): lambda m: m.append(m.above_mark())},
    **{ord(')'): lambda m: m.make('tuple', []), ord('t'): lambda m: m.make('tuple', m.above_mark())},
    **{0x85: lambda m: m.tuple_of(1), 0x86: lambda m: m.tuple_of(2), 0x87: lambda m: m.tuple_of(3)},
    **{ord('}'): lambda m: m.stack.append(Compound('dict', {})), ord('d'): _Machine.make_dict},
    **{ord('s'): _Machine.set_item, ord('u'): lambda m: m.set_items(m.above_mark())},
    **{ord('c'): _Machine.find_line, 0x93: _Machine.find_stacked, ord('R'): _Machine.reduce},
    **{ord('b'): _Machine.build, ord('Q'): _Machine.persistent},
    **{0x80: _Machine.protocol, 0x95: _Machine.frame},
}
