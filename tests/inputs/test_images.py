import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from tests.makers import noise
from vipllava_jax.inputs.images import LONGEST, Settings, cut_off, open_image, pixels
from vipllava_jax.inputs.marks import Mark, draw

SMALL = Settings(side=28, edge=28)
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


def levels(normalised: np.ndarray, settings: Settings) -> np.ndarray:
    """Back to grey levels."""
    return (normalised * np.array(settings.std) + np.array(settings.mean)) / settings.scale


def saved(picture: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


@pytest.fixture(scope='module')
def peers():
    from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

    def make(kind, edge, side, **fields):
        made = {'crop': CLIPImageProcessorPil, 'pad': LlavaImageProcessorPil}[kind](
            size={'shortest_edge': edge},
            crop_size={'height': side, 'width': side},
            do_pad=kind == 'pad',
            **fields,
        )
        return lambda picture: made(picture, return_tensors='np')['pixel_values'][0].transpose(1, 2, 0)

    return make


@pytest.mark.parity
@pytest.mark.parametrize('fit', ['crop', 'pad'])
@pytest.mark.parametrize(('edge', 'side'), [(28, 28), (33, 28)])
def test_pixels_are_those_of_transformers(peers, fit, edge, side):
    settings = Settings(side=side, edge=edge)
    peer = peers(fit, edge, side)
    for size in SIZES:
        picture = noise(*size)
        ours, theirs = pixels(picture, settings, fit), peer(picture)
        assert ours.shape == (side, side, 3)
        assert ours.dtype == np.float32
        difference = np.abs(levels(ours, settings) - levels(theirs, settings)).max()
        assert difference < 1.001, f'{size}: {difference} grey levels'


@pytest.mark.parity
def test_pixels_of_the_real_size_are_those_of_transformers(peers):
    for fit, size in [('crop', (640, 427)), ('crop', (1, 200)), ('crop', (200, 1)), ('pad', (640, 427))]:
        ours, theirs = pixels(noise(*size), Settings(), fit), peers(fit, 336, 336)(noise(*size))
        assert np.abs(levels(ours, Settings()) - levels(theirs, Settings())).max() < 1.001, (fit, size)


@pytest.mark.parity
@pytest.mark.parametrize('mode', ['L', '1', 'LA', 'RGBA', 'P', 'CMYK', 'YCbCr'])
def test_modes_become_rgb_as_in_transformers(mode):
    from transformers.image_transforms import convert_to_rgb

    picture = noise(9, 7).convert('RGBA' if mode in ('LA', 'RGBA') else 'RGB')
    if mode in ('LA', 'RGBA'):
        picture.putalpha(noise(9, 7, seed=1).convert('L'))
    picture = picture.convert(mode)
    np.testing.assert_array_equal(np.asarray(open_image(picture)), convert_to_rgb(picture, return_numpy=True))


@pytest.mark.parametrize('edge', [28, 40])
@given(width=st.integers(1, 90), height=st.integers(1, 90), seed=st.integers(0, 9))
def test_cropping_early_is_cropping_late(edge, width, height, seed):
    settings, picture = Settings(side=28, edge=edge), noise(width, height, seed)
    smooth = picture.filter(ImageFilter.BoxBlur(3))  # so that it does not show which axis was resized first
    at_once = levels(pixels(smooth, settings, 'crop'), settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('vipllava_jax.inputs.images.GIANT', 0)
        in_parts = levels(pixels(smooth, settings, 'crop'), settings)
    assert np.abs(in_parts - at_once).max() < 2.001


@given(width=st.integers(1, 90), height=st.integers(1, 90))
def test_padding_keeps_the_proportions_and_squash_the_corners(width, height):
    white = Image.new('RGB', (width, height), (255, 255, 255))
    padded = levels(pixels(white, SMALL, 'pad'), SMALL)
    mean = np.array([122, 116, 104])
    share = (padded - mean).mean() / (255 - mean).mean()
    assert share == pytest.approx(min(width, height) / max(width, height), abs=0.02)
    assert np.abs(levels(pixels(white, SMALL, 'squash'), SMALL) - 255).max() < 0.01


def test_padding_in_strips_is_padding_at_once(monkeypatch):
    at_once = pixels(noise(90, 61), SMALL, 'pad')
    monkeypatch.setattr('vipllava_jax.inputs.images.GIANT', 900)
    np.testing.assert_array_equal(pixels(noise(90, 61), SMALL, 'pad'), at_once)


def test_extreme_pictures_need_no_giant_one():
    for size in ((1, LONGEST), (LONGEST, 1)):
        for fit in ('crop', 'squash'):
            assert np.isfinite(pixels(Image.new('RGB', size), SMALL, fit)).all()


def test_unknown_fit_lists_the_fits():
    with pytest.raises(ValueError, match=r"unknown fit 'fill': choose crop, pad, squash"):
        pixels(noise(3, 3), SMALL, 'fill')


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_rotation_is_undone(orientation):
    upright = noise(5, 3)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turn[orientation]) if orientation in turn else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(open_image(saved(stored, 'PNG', exif=exif)), upright)


def test_sixteen_bit_grey_is_scaled():
    grey = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    opened = np.asarray(open_image(saved(Image.fromarray(grey), 'PNG')))
    np.testing.assert_array_equal(opened, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))
    with pytest.raises(ValueError, match='more than 16 bits'):
        open_image(Image.fromarray(np.full((2, 2), 70_000, np.int32)))


def test_transparency_is_laid_over_white():
    picture = Image.new('P', (2, 1))
    picture.putpalette([0, 0, 0, 200, 0, 0])
    picture.putpixel((1, 0), 1)
    opened = open_image(saved(picture, 'PNG', transparency=0))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 0, 0)]


def test_an_animation_is_its_first_frame():
    frames = [Image.new('RGB', (4, 4), color) for color in ('red', 'blue')]
    gif = saved(frames[0], 'GIF', save_all=True, append_images=frames[1:])
    assert open_image(gif).getpixel((0, 0)) == (255, 0, 0)


def test_cmyk_jpeg_opens():
    assert open_image(saved(Image.new('CMYK', (8, 8)), 'JPEG')).getpixel((3, 3)) == (255, 255, 255)


def test_the_source_is_not_changed(tmp_path):
    picture = noise(6, 4)
    opened = open_image(picture)
    opened.putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(picture, noise(6, 4))
    picture.save(tmp_path / 'a.png')
    for source in (tmp_path / 'a.png', str(tmp_path / 'a.png'), (tmp_path / 'a.png').read_bytes(), picture):
        np.testing.assert_array_equal(open_image(source), picture)


def test_wrong_files_are_one_line_that_names_them(tmp_path):
    whole = saved(noise(40, 40), 'PNG')
    contents = {
        'cut.png': whole[: len(whole) // 2],
        'cut.jpg': saved(noise(99, 99), 'JPEG')[:900],
        'no.jpg': b'hello',
    }
    contents |= {'empty.png': b'', 'headless.gif': b'GIF89a'}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name) as caught:
            open_image(tmp_path / name)
        assert '\n' not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no picture at '.*absent.png': check the path"):
        open_image(tmp_path / 'absent.png')
    with pytest.raises(FileNotFoundError, match='no picture at'):
        open_image('')
    with pytest.raises(ValueError, match='is not a file'):
        open_image(tmp_path)
    with pytest.raises(ValueError, match='is a URL: download'):
        open_image('https://example.org/photo.jpg')
    with pytest.raises(ValueError, match='image 3 is empty'):
        open_image(b'', 'image 3')
    with pytest.raises(TypeError, match='image 3 is a ndarray: expected a path, bytes or a PIL picture'):
        open_image(np.zeros((2, 2, 3)), 'image 3')
    with pytest.raises(ValueError, match='floating-point'):
        open_image(Image.new('F', (2, 2)))
    with pytest.raises(ValueError, match='0x4: it has no pixels'):
        open_image(Image.new('RGB', (0, 4)))


@pytest.mark.parametrize('side', [12_000, 40_000])  # where Pillow warns, and where it refuses
def test_a_decompression_bomb_is_refused_from_its_header(side):
    header = b'IHDR' + struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    bomb = b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + header + struct.pack('>I', zlib.crc32(header))
    with pytest.raises(
        ValueError, match='the picture has more than 89 million pixels: make it smaller first'
    ):
        open_image(bomb + struct.pack('>I', 0) + b'IDAT' + struct.pack('>I', zlib.crc32(b'IDAT')))
    with pytest.raises(ValueError, match='too large, 70000x1'):
        open_image(Image.new('RGB', (70_000, 1)))


@given(
    format=st.sampled_from(['PNG', 'JPEG', 'GIF', 'TIFF', 'BMP', 'WEBP']),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
    keep=st.floats(0.05, 1),
)
def test_damage_is_a_picture_or_one_error(format, changes, keep):
    data = bytearray(saved(noise(12, 10), format))
    for where, value in changes:
        data[int(where * len(data))] = value
    with contextlib.suppress(ValueError):
        assert open_image(bytes(data[: max(int(keep * len(data)), 1)])).mode == 'RGB'


def test_settings_of_every_era():
    new = {'size': {'shortest_edge': 40}, 'crop_size': {'height': 28, 'width': 28}}
    assert Settings.read(new) == Settings(side=28, edge=40)
    assert Settings.read({'size': 40, 'crop_size': 28}) == Settings(side=28, edge=40)
    assert Settings.read({**new, 'do_pad': True}).fit == 'pad'
    square = {'size': {'height': 28, 'width': 28}, 'do_center_crop': False}
    assert Settings.read(square) == Settings(side=28, edge=28, fit='squash')
    plain = Settings.read({**new, 'do_normalize': False, 'do_rescale': False})
    np.testing.assert_array_equal(pixels(Image.new('RGB', (9, 9), (7, 8, 9)), plain)[0, 0], [7, 8, 9])


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({}, 'p.json: expected size to be the sides of one square in pixels, found None'),
        ({'size': {'height': 28, 'width': 30}, 'crop_size': 28}, 'expected size to be'),
        ({'size': 28, 'crop_size': 'large'}, 'expected crop_size to be'),
        ({'size': 28, 'crop_size': 30}, 'crop_size within size'),
        ({'size': 28, 'crop_size': 28, 'do_resize': False}, 'do_resize False'),
        ({'size': 28, 'do_center_crop': False}, 'do_center_crop False'),
    ],
)
def test_settings_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        Settings.read(fields, 'p.json')


def test_marks_that_the_crop_cuts_off_are_found():
    left, middle = Mark('rectangle', box=(2, 10, 30, 40)), Mark('mask', box=(80, 10, 110, 40), color='blue')
    picture = draw(noise(200, 60), [left, middle])
    assert cut_off(picture, SMALL) == [str(left)]
    assert cut_off(open_image(picture), SMALL, 'crop') == [str(left)]
    assert cut_off(picture, SMALL, 'pad') == cut_off(picture, SMALL, 'squash') == []
    assert cut_off(picture.resize((100, 30)), SMALL) == []  # no longer the picture that was drawn on
    assert cut_off(draw(picture, Mark('point', point=(3, 50))), SMALL) == [str(left), 'point:3,50:red']
