import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.makers import noise
from vipllava_jax.inputs.images import open_image
from vipllava_jax.inputs.marks import Mark, draw

RGB = np.asarray(noise(40, 30))


@pytest.mark.parametrize('convert', [np.asarray, jnp.asarray, np.asfortranarray], ids=['numpy', 'jax', 'F'])
@pytest.mark.parametrize(
    'array', [RGB, RGB[..., 0], RGB[..., :1], np.dstack([RGB, RGB[..., 0]])], ids=['hw3', 'hw', 'hw1', 'hw4']
)
def test_an_array_becomes_the_same_picture_as_with_pillow(array, convert):
    picture = Image.fromarray(array.squeeze(2) if array.shape[2:] == (1,) else array)
    np.testing.assert_array_equal(np.asarray(open_image(convert(array))), np.asarray(open_image(picture)))


@pytest.mark.parity
def test_tensors_are_accepted_as_arrays():
    import torch

    np.testing.assert_array_equal(np.asarray(open_image(torch.tensor(RGB))), RGB)
    with pytest.raises(ValueError, match='an array of float32 with the shape'):
        open_image(torch.zeros(3, 4))


def test_views_are_accepted_as_arrays():
    np.testing.assert_array_equal(np.asarray(open_image(RGB[::-1, ::2])), RGB[::-1, ::2])


def test_marks_are_drawn_on_a_copy():
    array = RGB.copy()
    marked = draw(array, Mark('rectangle', box=(5, 5, 20, 20)))
    assert np.asarray(marked).tolist() != RGB.tolist()
    np.testing.assert_array_equal(array, RGB)


@pytest.mark.parametrize(
    ('array', 'message'),
    [
        (RGB / 255, r'an array of float64 with the shape \(30, 40, 3\), expected uint8: .*255 \* array'),
        (np.float32(RGB), 'an array of float32 .*expected uint8: for values from 0 to 1'),
        (np.int32(RGB), 'an array of int32 .*expected uint8$'),
        (RGB > 7, 'an array of bool .*expected uint8$'),
        (np.moveaxis(RGB, -1, 0), r'\(3, 30, 40\), expected height x width.*np.moveaxis\(array, 0, -1\)'),
        (RGB[..., :2], r'\(30, 40, 2\), expected height x width, or height x width x 1, 3 or 4$'),
        (RGB[None], r'\(1, 30, 40, 3\): pass several images as a list, such as list\(array\)'),
        (RGB[0, 0], r'\(3,\), expected height x width'),
        (np.uint8(7), r'shape \(\), expected height x width'),
        (np.zeros((0, 9, 3), np.uint8), 'is 9x0: it has no pixels'),
        (np.zeros((70_000, 1), np.uint8), 'is too large, 1x70000 pixels'),
        (np.broadcast_to(np.uint8(0), (60_000, 60_000)), 'is too large, 60000x60000 pixels'),
    ],
    ids=str,
)
def test_arrays_of_other_shapes_or_dtypes_are_refused(array, message):
    with pytest.raises(ValueError, match=f'^image 0 .*{message}'):
        open_image(array, 'image 0')
