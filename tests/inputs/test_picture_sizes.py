"""`image_size` returns the size of `open_image`'s picture, for every format and every orientation."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.makers import noise
from vipllava_jax.inputs.images import FORMATS, image_size, open_image

ORIENTATIONS = [*range(1, 9), 0, 9, 255, 65_535]
XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


def exif_of(orientation) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def saved(format: str, size=(40, 24), **options) -> bytes:
    file = io.BytesIO()
    noise(*size).save(file, format, **options)
    return file.getvalue()


def agree(tmp_path, content: bytes) -> tuple[int, int]:
    path = tmp_path / 'picture'
    path.write_bytes(content)
    size = image_size(path)
    assert size == image_size(content) == open_image(path).size == open_image(content).size
    return size


@pytest.mark.parametrize('orientation', ORIENTATIONS)
@pytest.mark.parametrize('format', FORMATS)
def test_the_size_is_right_for_every_format_and_orientation(tmp_path, format, orientation):
    with_exif = {} if format in ('GIF', 'BMP', 'PPM', 'ICO', 'JPEG2000') else {'exif': exif_of(orientation)}
    if format == 'TIFF':
        with_exif = {'tiffinfo': {274: orientation}}
    if format == 'ICO':
        with_exif = {'sizes': [(40, 24)]}
    if format == 'AVIF' and not 1 <= orientation <= 8:
        return  # Pillow does not write it
    size = agree(tmp_path, saved(format, **with_exif))
    turned = format in ('JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF') and orientation in (5, 6, 7, 8)
    assert size == ((24, 40) if turned else (40, 24))


@pytest.mark.parametrize('compression', [None, 'tiff_lzw', 'tiff_adobe_deflate', 'jpeg', 'packbits'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_the_orientation_of_a_tiff_is_applied_once(tmp_path, orientation, compression):
    upright = Image.new('RGB', (40, 24))
    upright.paste((255, 255, 255), (0, 0, 20, 8))
    back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if back is None else upright.transpose(back)
    xmp = XMP.format(orientation).encode()
    for tags in ({274: orientation}, {274: orientation, 700: xmp}, {700: xmp}):
        stored.save(tmp_path / 'a.tif', compression=compression, tiffinfo=tags)
        opened = open_image(tmp_path / 'a.tif')
        assert opened.size == image_size(tmp_path / 'a.tif') == (40, 24)
        difference = np.abs(np.asarray(opened, int) - np.asarray(upright, int))
        assert difference.max() < (1 if compression != 'jpeg' else 128)


@pytest.mark.parametrize(
    ('field_type', 'value'),
    [
        (3, [6, 6]),
        (4, [6]),
        (2, b'6\0'),
        (2, b'right\0'),
        (1, b'\6'),
        (5, [(6, 1)]),
        (5, [(6, 0)]),
        (11, [6.0]),
        (12, [float('nan')]),
        (7, b'\6\0'),
    ],
)
def test_an_orientation_of_another_type_is_read_as_by_pillow(tmp_path, field_type, value):
    numbers = [n for v in value for n in (v if isinstance(v, tuple) else (v,))]
    data = struct.pack(
        '<' + {1: 'B', 2: 'B', 3: 'H', 4: 'I', 5: 'I', 7: 'B', 11: 'f', 12: 'd'}[field_type] * len(numbers),
        *numbers,
    )
    entry = struct.pack('<HHI', 274, field_type, len(value))

    def block(head: bytes, offset: int) -> bytes:
        return head + entry + (data.ljust(4, b'\0') if len(data) <= 4 else struct.pack('<I', offset))

    exif = b'Exif\0\0' + block(b'II*\0\x08\0\0\0\x01\0', 26) + b'\0\0\0\0' + data
    for format in ('JPEG', 'PNG', 'WEBP'):
        agree(tmp_path, saved(format, exif=exif))
    tiff = saved('TIFF', tiffinfo={274: 1})
    head, _, rest = tiff.partition(struct.pack('<HHI', 274, 3, 1))
    agree(tmp_path, block(head, len(tiff)) + rest[4:] + data)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


@pytest.mark.parametrize('place', ['before the pixels', 'after the pixels'])
@pytest.mark.parametrize('chunk_type', ['eXIf', 'iTXt', 'packed iTXt', 'zTXt', 'tEXt'])
def test_the_orientation_of_a_png_may_be_in_any_chunk(tmp_path, chunk_type, place):
    block = exif_of(6).tobytes()
    raw = f'\nexif\n      {len(block)}\n{block.hex()}'.encode()
    xmp = XMP.format(6).encode()
    chunk = {
        'eXIf': png_chunk(b'eXIf', block[6:]),
        'iTXt': png_chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + xmp),
        'packed iTXt': png_chunk(b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + zlib.compress(xmp)),
        'zTXt': png_chunk(b'zTXt', b'Raw profile type exif\0\0' + zlib.compress(raw)),
        'tEXt': png_chunk(b'tEXt', b'Raw profile type exif\0' + raw),
    }[chunk_type]
    png = saved('PNG')
    at = png.index(b'IDAT') - 4 if place == 'before the pixels' else png.index(b'IEND') - 4
    assert agree(tmp_path, png[:at] + chunk + png[at:]) == (24, 40)


def test_the_size_of_a_picture_with_several_frames_is_that_of_the_first(tmp_path):
    frames = [noise(30, 20), noise(30, 20, seed=1)]
    for format in ('GIF', 'TIFF', 'PNG', 'WEBP', 'MPO', 'AVIF'):
        file = io.BytesIO()
        frames[0].save(file, format, save_all=True, append_images=frames[1:])
        assert agree(tmp_path, file.getvalue()) == (30, 20)
    small = [Image.new('RGB', (16, 16), 'red'), Image.new('RGB', (48, 48), 'blue')]
    file = io.BytesIO()
    small[1].save(file, 'ICO', sizes=[(16, 16), (48, 48)], append_images=small[:1])
    assert agree(tmp_path, file.getvalue()) == (48, 48)


def test_an_icon_may_be_larger_than_its_header_says(tmp_path):
    picture = saved('PNG', (300, 200))
    entry = struct.pack('<BBBBHHII', 32, 32, 0, 0, 1, 32, len(picture), 22)
    assert agree(tmp_path, struct.pack('<HHH', 0, 1, 1) + entry + picture) == (300, 200)


def test_a_picture_opened_in_draft_mode_has_the_smaller_size(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(saved('JPEG', (400, 240), exif=exif_of(6)))
    with Image.open(tmp_path / 'a.jpg') as picture:
        picture.draft('L', (100, 60))
        assert open_image(picture).size == (60, 100)
    assert image_size(tmp_path / 'a.jpg') == (240, 400)
    with Image.open(tmp_path / 'a.jpg') as picture:
        picture.load()
        assert open_image(picture).size == (240, 400)
        assert open_image(picture).size == (240, 400)
    (tmp_path / 'a.tif').write_bytes(saved('TIFF', tiffinfo={274: 6}))
    with Image.open(tmp_path / 'a.tif') as picture:
        assert open_image(picture).size == open_image(picture).size == (24, 40)
