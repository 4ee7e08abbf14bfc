"""The unpickler: every opcode that it supports, every one that it refuses, and its limits."""

import contextlib
import io
import pickle
import pickletools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.convert.files import integer, pickled, storage, string, tensor, tuple_of
from vipllava_jax.convert.opcodes import CONSTANTS
from vipllava_jax.convert.records import Compound, Refused, View
from vipllava_jax.convert.unpickler import DEEPEST, OPERATIONS, unpickle

HELD = storage('0', 'FloatStorage', 4)
DICT = b'ccollections\nOrderedDict\n)R'
OPCODES = {each.code.encode('latin-1')[0]: each.name for each in pickletools.opcodes}


def plain(value):
    """Converts the containers in an unpickled result to Python's."""
    if not isinstance(value, Compound):
        return value
    if isinstance(value.parts, dict):
        return {key: plain(part) for key, part in value.parts.items()}
    return (tuple if value.type == 'tuple' else list)(plain(part) for part in value.parts)


@pytest.mark.parametrize(
    'program',
    [
        *(b'N.', b'\x88.', b'\x89.', b'I00\n.', b'I01\n.', b'I-7\n.', b'L12L\n.', b'L12\n.'),
        *(b'K\xff.', b'M\xff\xff.', b'J\xff\xff\xff\xff.', b'\x8a\x00.', b'\x8a\x02\xff\x80.'),
        *(b'\x8b\x02\0\0\0\xff\x00.', b'F1.5\n.', b'G?\xf8\0\0\0\0\0\0.', b'V\\u00e9\n.', b'\x8c\2\xc3\xa9.'),
        *(string('é') + b'.', b'\x8d\2\0\0\0\0\0\0\0\xc3\xa9.', b'U\1a.', b'T\1\0\0\0a.'),
        *(b'C\1a.', b'B\1\0\0\0a.', b'\x8e\1\0\0\0\0\0\0\0a.', b').', b'].', b'}.'),
        *(b'(NNt.', b'N\x85.', b'NK\1\x86.', b'NK\1K\2\x87.', b'(NK\1l.', b']Na.', b'](NK\1e.'),
        *(b'}U\1aNs.', b'}(U\1aNU\1bNu.', b'(U\1aNd.', b'NK\x010.', b'N(K\1K\x021.', b'K\x012\x86.'),
        *(b'Np3\n0g3\n.', b'Nq\x030h\3.', b'Nr\3\0\0\x010j\3\0\0\1.', b'N\x94N\x940h\1.'),
        *(b'\x80\5N.', b'\x80\4\x95\2\0\0\0\0\0\0\0N.', b'K\1N0.'),
    ],
)
def test_pickles_give_the_same_result_as_in_python(program):
    assert plain(unpickle(program)) == pickle.loads(program, encoding='utf-8')


def test_every_opcode_is_known_or_refused():
    for code, name in OPCODES.items():
        if code in CONSTANTS or code in OPERATIONS or name == 'STOP':
            continue
        with pytest.raises(Refused, match=f'refuses the pickle opcode {name}, which no tensor needs'):
            unpickle(b'NN(N' + bytes([code]) + b'\0' * 9)
    with pytest.raises(Refused, match='opcode 0xff'):
        unpickle(b'\xff')


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize(
    'value',
    [
        *(
            None,
            True,
            False,
            0,
            1,
            -1,
            255,
            256,
            65536,
            -(1 << 31),
            1 << 62,
            -(1 << 63),
            1.5,
            '',
            'x',
            'é\n€',
        ),
        *(
            (),
            [],
            {},
            (1,),
            (1, 2),
            (1, 2, 3),
            (1, 2, 3, 4),
            [1, [2, (3,)]],
            {'a': {'b': [1, 'x']}, '2': 'y'},
        ),
        *(['same'] * 300, [[i] for i in range(1200)], {str(i): i for i in range(1200)}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_pickles_of_python_are_read(value, protocol):
    assert plain(unpickle(pickle.dumps(value, protocol=protocol))) == value


def test_memoized_values_are_shared():
    found = unpickle(b'](]q\x00h\x00e.')
    assert found.parts[0] is found.parts[1]


ARGUMENTS = {  # opcodes whose argument is a byte too short
    **dict.fromkeys(('BININT1', 'SHORT_BINUNICODE', 'SHORT_BINSTRING', 'SHORT_BINBYTES', 'LONG1'), b'\x01'),
    **{'BINUNICODE': b'\2\0\0\0a', 'BINUNICODE8': b'\2\0\0\0\0\0\0\0a', 'BINSTRING': b'\2\0\0\0a'},
    **{'BINBYTES': b'\2\0\0\0a', 'BINBYTES8': b'\2\0\0\0\0\0\0\0a', 'LONG4': b'\2\0\0\0a'},
    **{'INT': b'1', 'LONG': b'1L', 'FLOAT': b'1', 'UNICODE': b'a', 'GLOBAL': b'torch\nFloatStorage'},
    **{'PUT': b'1', 'GET': b'1', 'BINFLOAT': b'\0' * 7, 'BININT': b'\0' * 3, 'BININT2': b'\0'},
    **{'FRAME': b'\1\0\0\0\0\0\0\0', 'LONG_BINPUT': b'\0' * 3, 'LONG_BINGET': b'\0' * 3, 'BINPUT': b''},
    **{'BINGET': b'', 'PROTO': b''},
}
CODES = {name: bytes([code]) for code, name in OPCODES.items()}


@pytest.mark.parametrize('name', ARGUMENTS)
def test_a_truncated_argument_is_an_error(name):
    argument = b'' if name == 'BININT1' else ARGUMENTS[name]
    with pytest.raises(ValueError, match='ends in the middle|without a line end|beyond the pickle'):
        unpickle(b'N' + CODES[name] + argument)


@pytest.mark.parametrize(
    'program',
    [
        *(b'', b'N', b'.', b'(.', b'N(.'),  # STOP or its operand is missing
        *(
            b'0',
            b'2',
            b'1',
            b'a',
            b'Na',
            b']a',
            b's',
            b'}s',
            b'}Ns',
            b'e',
            b']e',
            b'u',
            b'}u',
            b't',
            b'l',
            b'd',
        ),
        *(b'\x85', b'N\x86', b'NN\x87', b'R', b'NR', b'b', b'Nb', b'Q', b'\x93', b'N\x93', b'q\0', b'd'),
        *(
            b'\x94',
            b'](a.',
            b'N(\x85.',
            b'}(Nu.',
            b'(Nd.',
            b'N(0.',
        ),  # an operand below a MARK, or a key without a value
        *(b'h\0.', b'j\0\0\0\0.', b'g0\n.', b'gx\n.', b'Np-1\n.', b'Np' + b'9' * 11 + b'\n.'),
        *(b'NNa.', b'NNNs.', b'}Na.', b']NNs.', b')Na.', b'N(e.', b'N(u.'),  # of the wrong type
        *(b'\x80\6N.', b'\x80\xffN.', b'\x95\xff\xff\xff\xff\xff\xff\xff\xffN.'),
        *(b'NN\x93.', b'\x8c\1aN\x93.', b'N\x8c\1a\x93.', b']]\x93.'),
        *(b'\x8c\1\xff.', b'X\1\0\0\0\xc3.', string('a') + b'X\3\0\0\0\xed\xa0\x80.', b'U\1\xe9.'),  # UTF-8
        *(b'V\\uzzzz\n.', b'Ix\n.', b'I\n.', b'LL\n.', b'Fx\n.', b'c\xff\n\xff\n.'),
        *(b'}(' + string('a') + b'N' + string('a') + b'Nu.', b'ctorch\nFloatStorage\nQ.'),
    ],
)
def test_broken_programs_are_errors(program):
    with pytest.raises(ValueError, match='.'):
        unpickle(program)


@pytest.mark.parametrize(
    'key', [b'K\1', b')', b']', b'}', b'N', b'\x88', b'G\0\0\0\0\0\0\0\0', b'C\1a', DICT, HELD]
)
def test_keys_of_dicts_must_be_strings(key):
    with pytest.raises(Refused, match='not a string'):
        unpickle(b'}' + key + b'Ns.')
    with pytest.raises(Refused, match='not a string'):
        unpickle(b'(' + key + b'Nd.')


def test_integers_whose_hashes_collide_take_no_time():
    prime = (1 << 61) - 1  # Python hashes an integer modulo this prime
    keys = b''.join(b'\x8a\x10' + (prime * n).to_bytes(16, 'little') + b'N' for n in range(1, 30_000))
    begin = time.process_time()
    with pytest.raises(Refused, match='a dict with a key that is int, not a string'):
        unpickle(b'}(' + keys + b'u.')
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    'target',
    [
        *(tensor(HELD, (4,), (1,)), HELD, b'ctorch\nFloatStorage\n', b'ctorch._utils\n_rebuild_tensor_v2\n'),
        *(b'N', b'K\1', string('x'), b')', b']', b'}', b'(Nt', b'ccollections\nOrderedDict\n'),
        b'ctorch._utils\n_rebuild_parameter\n' + tuple_of(tensor(HELD, (4,), (1,)), b'\x88', DICT) + b'R',
    ],
)
@pytest.mark.parametrize(
    'state', [b'}(' + string('file') + string('/etc/passwd') + b'u', b'N}\x86', b'N', b')', b'K\1']
)
def test_only_the_attributes_of_state_dicts_are_dropped(target, state):
    with pytest.raises(Refused, match='refuses to change'):
        unpickle(target + state + b'b.')


@pytest.mark.parametrize(
    'field', ['file', 'offset', 'dtype', 'shape', 'strides', 'storage', '__class__', '__dict__']
)
def test_no_attribute_of_a_tensor_is_set(field):
    program = pickled({'x': tensor(HELD, (4,), (1,)) + b'}' + string(field) + tuple_of(integer(9)) + b'sb'})
    with pytest.raises(Refused, match='refuses to change a tensor'):
        unpickle(program)


def test_a_view_of_a_storage_is_recorded():
    view = plain(unpickle(pickled({'x': tensor(HELD, (2, 1), (1, 5), offset=1)})))['x']
    assert isinstance(view, View)
    assert (view.dtype, view.offset, view.shape, view.strides) == ('float32', 1, (2, 1), (1, 5))
    for name in ('shape', 'new'):
        with pytest.raises((AttributeError, TypeError)):
            setattr(view, name, ())


@pytest.mark.parametrize(
    'program',
    [
        *(
            called + args + b'R.'
            for called in (b'N', b'K\1', string('os.system'), b')', b'}')
            for args in (b')',)
        ),
        *(f'ctorch\n{name}\n)R.'.encode() for name in ('FloatStorage', 'float32', 'UntypedStorage')),
        tensor(HELD, (4,), (1,)) + b')R.',
        HELD + b')R.',
    ],
)
def test_only_known_constructors_are_called(program):
    with pytest.raises(Refused, match='refuses to call'):
        unpickle(program)


@pytest.mark.parametrize(
    'program',
    [
        b'ccollections\nOrderedDict\n' + args + b'R.'
        for args in (b'N', b']', b'}', b']\x85', b'}\x85', b'NN\x86', string('ab'))
    ]
    + [
        b'ctorch._utils\n_rebuild_parameter\n' + args + b'R.'
        for args in (b')', b'(NNt', b'N', HELD + b'\x85')
    ],
)
def test_invalid_arguments_of_constructors_are_refused(program):
    with pytest.raises(ValueError, match='.'):
        unpickle(program)


ARGS = [HELD, integer(0), tuple_of(integer(4)), tuple_of(integer(1)), b'\x89', DICT]
WRONG = [
    *(b'N', b'\x88', string('x'), b'}', b']', b'(Nt', tuple_of(integer(-1)), integer(-1), integer(1 << 63)),
    *(tuple_of(integer(1 << 63)), tuple_of(b'\x88'), tuple_of(b'G?\xf0\0\0\0\0\0\0'), tuple_of(HELD)),
    tuple_of(*[integer(1)] * 65),
    tuple_of(tuple_of(integer(1))),
]


@pytest.mark.parametrize('wrong', WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize('place', range(4), ids=['storage', 'offset', 'shape', 'strides'])
def test_every_field_of_a_tensor_is_checked(place, wrong):
    args = [wrong if i == place else arg for i, arg in enumerate(ARGS)]
    with pytest.raises(ValueError, match='.'):
        unpickle(b'ctorch._utils\n_rebuild_tensor_v2\n' + tuple_of(*args) + b'R.')


@pytest.mark.parametrize('count', [0, 1, 3, 5])
def test_constructors_need_all_their_arguments(count):
    with pytest.raises(ValueError, match=f'called with {count} arguments'):
        unpickle(b'ctorch._utils\n_rebuild_tensor_v2\n' + tuple_of(*ARGS[:count]) + b'R.')


PID = [string('storage'), b'ctorch\nFloatStorage\n', string('0'), string('cpu'), integer(4)]


@pytest.mark.parametrize('wrong', [b'N', b'\x88', b')', b'}', b']', integer(-1), HELD, integer(1 << 63)])
@pytest.mark.parametrize('place', range(5), ids=['word', 'type', 'key', 'location', 'length'])
def test_every_field_of_a_storage_is_checked(place, wrong):
    with pytest.raises(ValueError, match='does not name a storage'):
        unpickle(tuple_of(*(wrong if i == place else part for i, part in enumerate(PID))) + b'Q.')


@pytest.mark.parametrize(
    'pid', [b'N', string('storage'), b']', b'}', tuple_of(*PID[:4]), tuple_of(*PID, b'N')]
)
def test_invalid_storage_names_are_refused(pid):
    with pytest.raises(ValueError, match='does not name a storage'):
        unpickle(pid + b'Q.')


@pytest.mark.parametrize(
    ('program', 'expected'),
    [
        (b')' + b'\x85' * 300_000 + b'.', f'more than {DEEPEST} deep'),
        (b']' * 300_000 + b'a' * 299_999 + b'.', f'more than {DEEPEST} deep'),
        (b'(' * 300_000 + b't' * 300_000 + b'.', f'more than {DEEPEST} deep'),
        (b'}' + b'U\1a}' * 300_000 + b's' * 300_000 + b'.', f'more than {DEEPEST} deep'),
        (b'}N' + b'q\0h\0\x86' * 60 + b'Ns.', f'more than {DEEPEST} deep'),  # doubled tuples as a key
        (b'}N' + b'q\0h\0\x86' * 30 + b'Ns.', 'not a string'),
        (b'](' + b'q\0h\0e](h\0' * 60 + b'.', 'opcode takes more'),
        (b'N' + b'\x94' * (1 << 21) + b'.', 'more than 1048576 opcodes'),  # a memo of millions
        (b'L' + b'9' * 60_000 + b'L\n.', 'an integer of 60000 digits'),
        (b'I' + b'9' * 60_000 + b'\n.', 'an integer of 60000 digits'),
        (b'L' + b'9' * (1 << 20) + b'L\n.', 'without a line end'),
        (b'\x8b\0\0\0\1' + b'\xff' * (1 << 24) + b'.', 'an integer of 16777216 bytes'),
        (b'\x8a\xff' + b'\x7f' * 255 + b'.', 'an integer of 255 bytes'),
        (b'\x8b\xff\xff\xff\xff', 'an integer of 4294967295 bytes'),
        (b'\x8e' + b'\xff' * 7 + b'\x7fN.', 'in the middle of an opcode'),
    ],
    ids=range(15),
)
def test_depth_memory_and_time_are_bounded(program, expected):
    began = time.thread_time()
    with pytest.raises(ValueError, match=expected):
        unpickle(program)
    assert time.thread_time() - began < 10


@pytest.mark.parametrize(
    'program',
    [
        b']q\0]q\1ah\1]a.',  # a nested list grows, which would change the depth
        b']q\0h\0a.',  # a list in itself
        b'}q\0K\1h\0s.',
        b']q\0(h\0\x85e' + b'h\0Na.',
    ],
)
def test_a_value_that_is_part_of_another_does_not_change(program):
    with pytest.raises(ValueError, match='after it was added|added to itself'):
        unpickle(program)


def test_errors_are_printable_whatever_the_input():
    """The repr of repeatedly doubled tuples would take years."""
    bomb = b'N' + b'q\0h\0\x86' * 28
    for program in (b'}' + bomb + b'Ns.', bomb + b'Q.', bomb + b')R.', bomb + b'Nb.', b'N' + bomb + b'\x93.'):
        with pytest.raises(ValueError, match='.') as raised:
            unpickle(program)
        assert len(str(raised.value)) < 200


@given(
    st.lists(
        st.sampled_from([bytes([code]) for code in OPCODES] + [HELD, DICT, string('x'), b'\0']), max_size=40
    )
)
@settings(max_examples=500, deadline=None)
def test_every_program_ends(parts):
    with contextlib.suppress(ValueError):
        unpickle(b''.join(parts) + b'.')


def test_frames_and_protocols_of_python_itself():
    buffer = io.BytesIO()
    pickle.Pickler(buffer, protocol=5).dump({'a' * 70_000: ['b' * 70_000]})
    assert plain(unpickle(buffer.getvalue())) == {'a' * 70_000: ['b' * 70_000]}
