"""The text form of a mesh."""

import pytest

from vipllava_jax.mesh_text import mesh_text, parse_mesh


@pytest.mark.parametrize(
    ('text', 'axes'),
    [
        ('tensor=4,data=2', {'tensor': 4, 'data': 2}),
        (' fsdp = 4 ', {'fsdp': 4}),
        ('auto', 'auto'),
    ],
)
def test_a_mesh_is_read(text, axes):
    assert parse_mesh(text) == axes


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'expected axis=devices'),
        ('4', 'expected axis=devices'),
        ('fsdp=4,', 'expected axis=devices'),
        ('auto,data=2', 'expected axis=devices'),
        ('rows=2', "no axis 'rows'; the axes are data, fsdp, tensor"),
        ('\x1b[2J=2', r"no axis '\\x1b\[2J'"),
        ('data=2,data=2', 'data is given twice'),
        ('data=0', "data is '0', expected a whole number of devices"),
        ('data=-2', "data is '-2', expected a whole number"),
        ('data=2.0', "data is '2.0', expected a whole number"),
        ('data=\u0663', 'expected a whole number'),
        ('data=', "data is '', expected a whole number"),
        ('data=1000000000000', 'expected a whole number of devices, 1 to 1,048,576'),
    ],
)
def test_another_text_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=f'^mesh.*{message}') as error:
        parse_mesh(text)
    assert str(error.value).isprintable()


def test_the_text_of_a_mesh_is_read_back():
    axes = {'fsdp': 4, 'tensor': 2}
    assert parse_mesh(mesh_text(axes)) == axes
