import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.makers import noise
from vipllava_jax.inputs.images import image_size, open_image


def saved(picture: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parity
@pytest.mark.parametrize('mode', ['L', '1', 'LA', 'RGBA', 'P', 'CMYK', 'YCbCr'])
def test_all_modes_are_converted_to_rgb_as_in_transformers(mode):
    from transformers.image_transforms import convert_to_rgb

    picture = noise(9, 7).convert('RGBA' if mode in ('LA', 'RGBA') else 'RGB')
    if mode in ('LA', 'RGBA'):
        picture.putalpha(noise(9, 7, seed=1).convert('L'))
    picture = picture.convert(mode)
    np.testing.assert_array_equal(np.asarray(open_image(picture)), convert_to_rgb(picture, return_numpy=True))


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


def test_transparent_pictures_are_composited_over_white():
    picture = Image.new('P', (2, 1))
    picture.putpalette([0, 0, 0, 200, 0, 0])
    picture.putpixel((1, 0), 1)
    opened = open_image(saved(picture, 'PNG', transparency=0))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 0, 0)]


def test_an_animation_is_its_first_frame():
    frames = [Image.new('RGB', (4, 4), color) for color in ('red', 'blue')]
    gif = saved(frames[0], 'GIF', save_all=True, append_images=frames[1:])
    assert open_image(gif).getpixel((0, 0)) == (255, 0, 0)


def test_a_cmyk_jpeg_is_converted_to_rgb():
    assert open_image(saved(Image.new('CMYK', (8, 8)), 'JPEG')).getpixel((3, 3)) == (255, 255, 255)


def test_the_source_is_not_changed(tmp_path):
    picture = noise(6, 4)
    opened = open_image(picture)
    opened.putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(picture, noise(6, 4))
    picture.save(tmp_path / 'a.png')
    for source in (tmp_path / 'a.png', str(tmp_path / 'a.png'), (tmp_path / 'a.png').read_bytes(), picture):
        np.testing.assert_array_equal(open_image(source), picture)


def test_errors_about_files_are_one_line_with_the_path(tmp_path):
    png = saved(noise(40, 40), 'PNG')
    contents = {
        'cut.png': png[: len(png) // 2],
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
    with pytest.raises(
        TypeError, match='image 3 is of type list: expected a path, bytes, a PIL picture or an array'
    ):
        open_image([[1, 2], [3, 4]], 'image 3')
    with pytest.raises(
        ValueError, match='cannot be converted to RGB .its pixels are floating-point numbers.: save it'
    ):
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


def test_a_jpeg_2000_with_too_many_samples_is_refused_from_its_header(monkeypatch):
    data = saved(noise(30, 20).convert('RGBA'), 'JPEG2000')
    assert open_image(data).size == (30, 20)
    monkeypatch.setattr('vipllava_jax.inputs.images.MAX_SAMPLES', 30 * 20 * 4 - 1)
    with pytest.raises(ValueError, match='too large for JPEG 2000, 30x20 pixels of RGBA: save it as PNG'):
        open_image(data)


def test_a_picture_without_its_palette_is_refused():
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', 8, 8, 8, 3, 0, 0, 0))
    pixels = chunk(b'IDAT', zlib.compress(bytes(8 * 9)))
    with pytest.raises(ValueError, match='cannot be converted to RGB'):
        open_image(b'\x89PNG\r\n\x1a\n' + header + pixels + chunk(b'IEND', b''))


def test_a_jpeg_2000_box_of_a_huge_stated_size_takes_no_memory(tmp_path):
    path = tmp_path / 'photo.jp2'
    signature = b'\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 '
    path.write_bytes(signature + struct.pack('>I4sQ', 1, b'jp2h', 1 << 62) + bytes(100))
    for read in (open_image, image_size):
        with pytest.raises(ValueError, match=r'photo.jp2.* is damaged'):
            read(path)


@given(
    format=st.sampled_from(['PNG', 'JPEG', 'GIF', 'TIFF', 'BMP', 'WEBP']),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
    keep=st.floats(0.05, 1),
)
def test_a_damaged_picture_is_opened_or_a_value_error(format, changes, keep):
    data = bytearray(saved(noise(12, 10), format))
    for where, value in changes:
        data[int(where * len(data))] = value
    with contextlib.suppress(ValueError):
        assert open_image(bytes(data[: max(int(keep * len(data)), 1)])).mode == 'RGB'


@pytest.mark.parametrize('orientation', range(1, 9))
def test_image_size_equals_the_size_of_the_opened_picture(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise(40, 30).save(tmp_path / 'a.jpg', exif=exif)
    assert image_size(tmp_path / 'a.jpg') == open_image(tmp_path / 'a.jpg').size
    with pytest.raises(FileNotFoundError, match='no picture at'):
        image_size(tmp_path / 'b.jpg')
