"""Metadata of any size is skipped, and no file takes long to read."""

import contextlib
import io
import os
import re
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from tests.makers import noise
from vipllava_jax.inputs.images import FORMATS, image_size, open_image
from vipllava_jax.inputs.metadata import FileRanges, without_metadata

LARGE = 3 << 20


def saved(format: str, picture: Image.Image | None = None, **options) -> bytes:
    file = io.BytesIO()
    (picture or noise(40, 24)).save(file, format, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack('>BBH', 0xFF, marker, len(data) + 2) + data


NOISE = np.random.default_rng(0).bytes(LARGE)
PNG_CHUNKS = {
    'tEXt': b'Comment\0' + b'a' * LARGE,
    'zTXt': b'Comment\0\0' + zlib.compress(bytes(100 << 20)),
    'iTXt': b'Comment\0\0\0\0\0' + b'a' * LARGE,
    'packed iTXt': b'Comment\0\1\0\0\0' + zlib.compress(bytes(100 << 20)),
    'XMP': b'XML:com.adobe.xmp\0\0\0\0\0' + b'a' * LARGE,
    'packed XMP': b'XML:com.adobe.xmp\0\1\0\0\0' + zlib.compress(bytes(100 << 20)),
    'raw profile': b'Raw profile type exif\0\0' + zlib.compress(bytes(100 << 20)),
    'iCCP': b'profile\0\0' + zlib.compress(NOISE),
    'iCCP bomb': b'profile\0\0' + zlib.compress(bytes(100 << 20)),
    'caBX': NOISE,
}


@pytest.mark.parametrize('place', ['before the pixels', 'after the pixels'])
@pytest.mark.parametrize('label', PNG_CHUNKS)
def test_a_large_chunk_of_a_png_is_skipped(tmp_path, label, place):
    name = re.sub('.* ', '', label).replace('XMP', 'iTXt').replace('profile', 'zTXt').replace('bomb', 'iCCP')
    png = saved('PNG')
    at = png.index(b'IDAT') - 4 if place == 'before the pixels' else png.index(b'IEND') - 4
    content = png[:at] + chunk(name.encode(), PNG_CHUNKS[label]) * 2 + png[at:]
    (tmp_path / 'a.png').write_bytes(content)
    tracemalloc.start()
    np.testing.assert_array_equal(open_image(tmp_path / 'a.png'), noise(40, 24))
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()
    np.testing.assert_array_equal(open_image(content), noise(40, 24))
    assert image_size(tmp_path / 'a.png') == (40, 24)


def test_thousands_of_texts_are_skipped():
    info = PngImagePlugin.PngInfo()
    for n in range(5000):
        info.add_text(f'text {n}', 'a' * 20_000)
    np.testing.assert_array_equal(open_image(saved('PNG', pnginfo=info)), noise(40, 24))


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF'])
def test_a_large_colour_profile_is_skipped(format):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes() + NOISE
    plain, profiled = saved(format), saved(format, icc_profile=profile)
    assert len(profiled) > len(plain) + LARGE // 2
    np.testing.assert_array_equal(open_image(profiled), open_image(plain))


@pytest.mark.parametrize('format', ['JPEG', 'WEBP', 'PNG', 'AVIF'])
def test_large_exif_data_keep_the_orientation(format):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = 'a' * (60_000 if format == 'JPEG' else LARGE)
    assert open_image(saved(format, exif=exif)).size == (24, 40)


def test_large_tags_of_a_tiff_keep_the_orientation():
    tags = {274: 6, 270: 'a' * LARGE, 37_724: NOISE, 700: NOISE}
    assert open_image(saved('TIFF', tiffinfo=tags)).size == (24, 40)


def test_many_segments_of_a_jpeg_are_skipped(tmp_path):
    jpeg = saved('JPEG')
    exif = Image.Exif()
    exif[0x0112] = 6
    first = segment(0xE1, exif.tobytes())
    many = [segment(0xE0 + n % 16, b'a' * 65_000) for n in range(300)]
    many += [segment(0xE1, b'Exif\0\0' + b'a' * 60_000), segment(0xFE, b'a' * 60_000)] * 200
    many += [
        segment(0xE2, b'ICC_PROFILE\0\1\1' + b'a' * 60_000),
        segment(0xE2, b'MPF\0' + b'a' * 60_000),
    ] * 20
    (tmp_path / 'a.jpg').write_bytes(jpeg[:2] + first + b''.join(many) + jpeg[2:])
    upright = open_image(jpeg).transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(open_image(tmp_path / 'a.jpg'), upright)
    assert image_size(tmp_path / 'a.jpg') == (24, 40)


def test_a_jpeg_keeps_the_segments_that_describe_its_colours():
    for mode in ('CMYK', 'L', 'RGB'):
        picture = noise(40, 24).convert(mode)
        data = saved('JPEG', picture, keep_rgb=True) if mode == 'RGB' else saved('JPEG', picture)
        with Image.open(io.BytesIO(data)) as expected:
            np.testing.assert_array_equal(open_image(data), expected.convert('RGB'))


def test_the_comments_of_a_gif_are_skipped(tmp_path):
    gif = saved('GIF', noise(40, 24).quantize(16), transparency=0)
    at = gif.index(b'!\xf9')
    comment = b'!\xfe' + (b'\xff' + b'a' * 255) * 100_000 + b'\0'
    begin = time.process_time()
    np.testing.assert_array_equal(open_image(gif[:at] + comment + gif[at:]), open_image(gif))
    assert time.process_time() - begin < 5


@pytest.mark.parametrize('format', FORMATS)
def test_files_without_metadata_are_unchanged(format):
    data = saved(format)
    with Image.open(io.BytesIO(data)) as expected:
        np.testing.assert_array_equal(open_image(data), expected.convert('RGB'))
    file = io.BytesIO(data)
    assert without_metadata(file).read() == data


@given(
    st.binary(max_size=60),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=5),
    st.lists(st.tuples(st.integers(-10, 80), st.integers(0, 30)), max_size=5),
)
def test_ranges_are_read_like_a_file(data, ranges, reads):
    ranges = [(a, b) for a, b in ranges if a <= b <= len(data)]
    plain = io.BytesIO(b''.join(data[a:b] for a, b in ranges))
    parts = io.BufferedReader(FileRanges(io.BytesIO(data), ranges), 4)
    assert parts.seek(0, io.SEEK_END) == plain.seek(0, io.SEEK_END)
    for at, count in reads:
        at = max(at, 0)
        parts.seek(at)
        plain.seek(at)
        assert parts.read(count) == plain.read(count)
        assert parts.tell() == plain.tell()


@given(
    format=st.sampled_from(FORMATS),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8),
    keep=st.floats(0.05, 1),
    more=st.binary(max_size=20),
)
def test_image_size_agrees_with_open_image_on_damaged_pictures(tmp_path_factory, format, changes, keep, more):
    data = bytearray(saved(format))
    for where, value in changes:
        data[int(where * min(len(data), 400))] = value
    path = tmp_path_factory.getbasetemp() / 'damaged'
    path.write_bytes(bytes(data[: max(int(keep * len(data)), 1)]) + more)
    opened = None
    with contextlib.suppress(ValueError):
        opened = open_image(path).size
    with contextlib.nullcontext() if opened else contextlib.suppress(ValueError):
        assert image_size(path) == opened or not opened


JPEG = saved('JPEG', noise(400, 300), progressive=True)
TIFF = saved('TIFF')
FIRST = struct.unpack('<I', TIFF[4:8])[0]  # where its tags begin


def strips(count: int) -> bytes:
    """A TIFF file with the given number of strip offsets."""
    (field_type,) = (field_type for field_type in (3, 4) if struct.pack('<HHI', 273, field_type, 1) in TIFF)
    return TIFF.replace(struct.pack('<HHI', 273, field_type, 1), struct.pack('<HHI', 273, 4, count)) + bytes(
        4 * count
    )


def overlapping_tags() -> bytes:
    tags = b''.join(struct.pack('<HHII', tag, 4, 200_000, 8) for tag in range(256, 60_000))
    return b'II*\0\x08\0\0\0' + struct.pack('<H', 59_744) + tags + bytes(900_000)


def looping_tags() -> bytes:
    (entries,) = struct.unpack('<H', TIFF[FIRST : FIRST + 2])
    end = FIRST + 2 + 12 * entries
    return TIFF[:end] + struct.pack('<I', FIRST) + TIFF[end + 4 :]


def packed_bmp() -> bytes:
    header = struct.pack('<IiiHHIIiiII', 40, 9000, 9000, 1, 8, 1, 0, 0, 0, 0, 0)
    return b'BM' + struct.pack('<IHHI', 0, 0, 0, 54) + header + b'\1\1' * (9 << 20)


def icons(count: int) -> bytes:
    entry = struct.pack('<BBBBHHII', 1, 1, 0, 0, 1, 32, 4, 22)
    return struct.pack('<HHH', 0, 1, count) + entry * count


# Files that are small, or made of repetitions, and would take long to read.
HOSTILE = {
    'scans.jpg': lambda: JPEG[:-2] + JPEG[JPEG.rindex(b'\xff\xda') : -2] * 2000 + b'\xff\xd9',
    'junk.jpg': lambda: JPEG[:2] + bytes(20 << 20) + JPEG[2:],
    'fill.jpg': lambda: JPEG[:2] + b'\xff' * (20 << 20) + JPEG[3:],
    'segments.jpg': lambda: JPEG[:2] + segment(0xE5, b'') * 2_000_000 + JPEG[2:],
    'chunks.png': lambda: saved('PNG')[:33] + chunk(b'teSt', b'') * 500_000 + saved('PNG')[33:],
    'comments.gif': lambda: b'GIF89a\1\0\1\0\0\0\0' + b'!\xfe\1a\0' * 1_000_000,
    'blocks.gif': lambda: b'GIF89a\1\0\1\0\0\0\0!\xfe' + b'\1a' * 5_000_000,
    'comment.ppm': lambda: b'P6 #' + b'a' * (30 << 20),
    'comments.ppm': lambda: b'P3 100 100 255\n' + b'#\n' * 2_000_000,
    'late.ppm': lambda: b'P6\n#' + b'a' * (3 << 20) + b'\n2 2 255\n' + bytes(12),
    'digits.ppm': lambda: b'P3 4000 4000 255\n' + b'7 ' * (40 << 20),
    'tags.tif': overlapping_tags,
    'strips.tif': lambda: strips(3_000_000),
    'loop.tif': looping_tags,
    'huge.bmp': packed_bmp,
    'icons.ico': lambda: icons(65_535),
}


# The peak memory is the child's own: getrusage's would begin at that of the process which started it.
READ = """
import re, sys, time
from vipllava_jax.inputs.images import image_size, open_image
begin = time.process_time()
for read in (image_size, open_image):
    try:
        read(sys.argv[1])
        print('opened')
    except ValueError as error:
        assert len(str(error)) < 500 and str(error).isprintable()
        print(error)
assert time.process_time() - begin < 10, time.process_time() - begin
with open('/proc/self/status') as status:
    peak = int(re.search(r'VmHWM:\\s+(\\d+) kB', status.read())[1])
assert peak < 2 << 20, peak
"""


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_files_take_neither_time_nor_memory(tmp_path, name):
    (tmp_path / name).write_bytes(HOSTILE[name]())
    done = subprocess.run(
        [sys.executable, '-c', READ, tmp_path / name], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, '')


def test_special_files_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / 'fifo.png')
    (tmp_path / 'link.png').symlink_to('fifo.png')
    (tmp_path / 'null.png').symlink_to('/dev/zero')
    (tmp_path / 'loop.png').symlink_to('loop.png')
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / 'socket.png'))
    for name in ('fifo.png', 'link.png', 'null.png', 'socket.png', 'loop.png'):
        for read_at in (open_image, image_size):
            with pytest.raises((ValueError, FileNotFoundError), match=name):
                read_at(tmp_path / name)
    with (tmp_path / 'sparse.png').open('wb') as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match='expected at most 1024: make it smaller'):
        open_image(tmp_path / 'sparse.png')
    with (tmp_path / 'sparse.webp').open('wb') as file:
        file.write(saved('WEBP')[:40])
        file.truncate(900 << 20)
    with pytest.raises(ValueError, match='expected at most 256'):
        open_image(tmp_path / 'sparse.webp')


@pytest.mark.parametrize(
    'path', ['a' * 1_000_000, 'a\udc80', 'a\x1b[31m', 'a\0b', '\u202e', 'http://' + 'a' * 9999]
)
def test_a_path_in_a_message_is_short_and_printable(path):
    for read_at in (open_image, image_size):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            read_at(path)
        assert len(str(caught.value)) < 500
        assert str(caught.value).isprintable()


def test_warnings_and_logs_of_pillow_are_suppressed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    broken = exif.tobytes()[:-6] + b'\xff' * 6
    entry = struct.pack('<BBBBHHII', 32, 32, 0, 0, 1, 32, len(saved('PNG')), 22)
    layers = struct.pack('<HHIHH', 277, 3, 1, 3, 0), struct.pack('<HHIHH', 277, 3, 1, 999, 0)
    contents = [
        saved('JPEG', exif=broken),
        saved('PNG', exif=broken),
        saved('WEBP', exif=broken),
        struct.pack('<HHH', 0, 1, 1) + entry + saved('PNG'),
        saved('PNG', noise(9, 9).quantize(9), transparency=bytes(9)),
        TIFF.replace(*layers),
        TIFF[:-20],
        saved('TIFF', compression='tiff_lzw')[:300],
        saved('TIFF', compression='tiff_adobe_deflate').replace(b'\x78', b'\x77'),
    ]
    paths = [str(tmp_path / str(n)) for n in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        Path(path).write_bytes(content)
    code = (
        'import contextlib, sys; from vipllava_jax.inputs.images import image_size, open_image\n'
        'for path in sys.argv[1:]:\n'
        '    for read in (image_size, open_image):\n'
        '        with contextlib.suppress(ValueError): read(path)\n'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'always', '-c', code, *paths], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, '')
