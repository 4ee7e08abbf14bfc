import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from tests.makers import noise
from vipllava_jax.inputs.images import MAX_SIDE, open_image
from vipllava_jax.inputs.marks import Mark, draw
from vipllava_jax.inputs.pixels import FITS, ImageSettings, marks_cut_off, pixels

SMALL = ImageSettings(side=28, edge=28)
SIZES = [
    (1, 1000),
    (1000, 1),
    (3, 701),
    (61, 40),
    (40, 61),
    (28, 28),
    (29, 500),
    (500, 29),
    (7, 5),
    (333, 77),
]


def color_levels(normalised: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Normalised pixels -> grey levels."""
    return (normalised * np.array(settings.std) + np.array(settings.mean)) / settings.scale


@pytest.fixture(scope='module')
def peers():
    from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

    def make(fit, edge, side, **fields):
        processor = {'crop': CLIPImageProcessorPil, 'pad': LlavaImageProcessorPil}[fit](
            size={'shortest_edge': edge},
            crop_size={'height': side, 'width': side},
            do_pad=fit == 'pad',
            **fields,
        )
        return lambda picture: processor(picture, return_tensors='np')['pixel_values'][0].transpose(1, 2, 0)

    return make


@pytest.mark.parity
@pytest.mark.parametrize('fit', ['crop', 'pad'])
@pytest.mark.parametrize(('edge', 'side'), [(28, 28), (33, 28)])
def test_pixels_equal_those_of_transformers(peers, fit, edge, side):
    settings = ImageSettings(side=side, edge=edge)
    peer = peers(fit, edge, side)
    for size in SIZES:
        picture = noise(*size)
        ours, theirs = pixels(picture, settings, fit), peer(picture)
        assert ours.shape == (side, side, 3)
        assert ours.dtype == np.float32
        difference = np.abs(color_levels(ours, settings) - color_levels(theirs, settings)).max()
        assert difference < 1.001, f'{size}: {difference} grey levels'


@pytest.mark.parity
def test_pixels_at_336_equal_those_of_transformers(peers):
    for fit, size in [('crop', (640, 427)), ('crop', (1, 200)), ('crop', (200, 1)), ('pad', (640, 427))]:
        ours, theirs = pixels(noise(*size), ImageSettings(), fit), peers(fit, 336, 336)(noise(*size))
        assert (
            np.abs(color_levels(ours, ImageSettings()) - color_levels(theirs, ImageSettings())).max() < 1.001
        ), (fit, size)


@pytest.mark.parametrize('edge', [28, 40])
@given(width=st.integers(1, 90), height=st.integers(1, 90), seed=st.integers(0, 9))
def test_cropping_before_resizing_equals_cropping_after(edge, width, height, seed):
    settings, picture = ImageSettings(side=28, edge=edge), noise(width, height, seed)
    smooth = picture.filter(ImageFilter.BoxBlur(3))  # so that it does not show which axis was resized first
    at_once = color_levels(pixels(smooth, settings, 'crop'), settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('vipllava_jax.inputs.pixels.MAX_INTERMEDIATE', 0)
        in_parts = color_levels(pixels(smooth, settings, 'crop'), settings)
    assert np.abs(in_parts - at_once).max() < 2.001


@given(width=st.integers(1, 90), height=st.integers(1, 90))
def test_padding_keeps_proportions_and_squashing_keeps_corners(width, height):
    white = Image.new('RGB', (width, height), (255, 255, 255))
    padded = color_levels(pixels(white, SMALL, 'pad'), SMALL)
    mean = np.array([122, 116, 104])
    share = (padded - mean).mean() / (255 - mean).mean()
    assert share == pytest.approx(min(width, height) / max(width, height), abs=0.05)
    assert np.abs(color_levels(pixels(white, SMALL, 'squash'), SMALL) - 255).max() < 0.01


def test_padding_in_strips_equals_padding_at_once(monkeypatch):
    at_once = pixels(noise(90, 61), SMALL, 'pad')
    monkeypatch.setattr('vipllava_jax.inputs.pixels.MAX_INTERMEDIATE', 900)
    np.testing.assert_array_equal(pixels(noise(90, 61), SMALL, 'pad'), at_once)


def test_an_unknown_fit_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match=r"unknown fit 'fill': choose crop, pad, squash"):
        pixels(noise(3, 3), SMALL, 'fill')


def test_settings_of_every_version_are_read():
    new = {'size': {'shortest_edge': 40}, 'crop_size': {'height': 28, 'width': 28}}
    assert ImageSettings.from_fields(new) == ImageSettings(side=28, edge=40)
    assert ImageSettings.from_fields({'size': 40, 'crop_size': 28}) == ImageSettings(side=28, edge=40)
    assert ImageSettings.from_fields({**new, 'do_pad': True}).fit == 'pad'
    square = {'size': {'height': 28, 'width': 28}, 'do_center_crop': False}
    assert ImageSettings.from_fields(square) == ImageSettings(side=28, edge=28, fit='squash')
    assert ImageSettings.from_fields({**new, 'do_center_crop': None, 'image_mean': None}) == ImageSettings(
        side=28, edge=40
    )
    plain = ImageSettings.from_fields({**new, 'do_normalize': False, 'do_rescale': False})
    np.testing.assert_array_equal(pixels(Image.new('RGB', (9, 9), (7, 8, 9)), plain)[0, 0], [7, 8, 9])


@pytest.mark.parametrize('count', [0, 2])
def test_any_number_of_pictures_is_normalized(count):
    images = np.full((3, count, 28, 28, 3), 255, np.uint8)
    normalized = SMALL.normalize(images)
    assert (normalized.shape, normalized.dtype) == (images.shape, np.float32)
    np.testing.assert_array_equal(SMALL.denormalize(normalized), images)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({}, 'p.json: expected size to be the sides of one square in pixels, found None'),
        ({'size': {'height': 28, 'width': 30}, 'crop_size': 28}, 'expected size to be'),
        ({'size': 28, 'crop_size': 'large'}, 'expected crop_size to be'),
        ({'size': {}, 'crop_size': 28}, 'expected size to be'),
        ({'size': 28, 'crop_size': 30}, 'p.json: crop_size 30 is not valid'),
        ({'size': 28, 'crop_size': 28, 'do_resize': False}, 'do_resize False is not valid'),
        ({'size': 28, 'do_center_crop': False}, 'do_center_crop False is not valid'),
        ({'size': 28, 'crop_size': 28, 'resample': 77}, 'resample 77 is not valid'),
        ({'size': 28, 'crop_size': 28, 'image_mean': [0.5]}, r'image_mean \[0.5\] is not valid'),
        ({'size': 28, 'crop_size': 28, 'image_std': [1, 0, 1]}, r'image_std \[1, 0, 1\] is not valid'),
    ],
)
def test_invalid_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ImageSettings.from_fields(fields, 'p.json')


@pytest.mark.parametrize('fit', FITS)
def test_written_settings_are_read_unchanged(fit):
    settings = ImageSettings(side=28, edge=40, fit=fit, resample=2, mean=(0.5, 0.25, 0.125))
    assert ImageSettings.from_fields(settings.to_fields()) == settings


def test_marks_that_the_crop_cuts_off_are_found():
    left, middle = Mark('rectangle', box=(2, 10, 30, 40)), Mark('mask', box=(80, 10, 110, 40), color='blue')
    picture = draw(noise(200, 60), [left, middle])
    assert marks_cut_off(picture, SMALL) == [str(left)]
    assert marks_cut_off(open_image(picture), SMALL, 'crop') == [str(left)]
    assert marks_cut_off(picture, SMALL, 'pad') == marks_cut_off(picture, SMALL, 'squash') == []
    assert marks_cut_off(picture.resize((100, 30)), SMALL) == []  # no longer the picture that was drawn on
    assert marks_cut_off(draw(picture, Mark('point', point=(3, 50))), SMALL) == [str(left), 'point:3,50:red']


def test_a_very_tall_picture_is_padded(monkeypatch):
    picture = noise(40, 90).filter(ImageFilter.BoxBlur(3))
    row_by_row = color_levels(pixels(picture, SMALL, 'pad'), SMALL)
    monkeypatch.setattr('vipllava_jax.inputs.pixels.MAX_ROW_BY_ROW', 900)
    assert np.abs(color_levels(pixels(picture, SMALL, 'pad'), SMALL) - row_by_row).max() < 1.001


@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('size', [(1, MAX_SIDE), (MAX_SIDE, 1), (3, MAX_SIDE), (2000, 40_000)])
def test_extreme_proportions_are_processed_quickly(size, fit):
    begin = time.process_time()
    assert np.isfinite(pixels(Image.new('RGB', size), ImageSettings(), fit)).all()
    assert time.process_time() - begin < 10


def test_values_looked_up_on_a_device_are_those_of_normalize():
    settings = ImageSettings()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), np.uint8)
    found = jax.jit(lambda pixels, values: values[pixels, jnp.arange(3)])(pixels, settings.normalized)
    np.testing.assert_array_equal(found, settings.normalize(pixels))
