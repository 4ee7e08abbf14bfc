"""Commands write complete pictures, and never overwrite one of their inputs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

MARK = ('--mark', 'rectangle:10,10,50,40:red')


@pytest.fixture
def content(photo) -> bytes:
    return photo.read_bytes()


def spellings(photo: Path) -> dict[str, Path]:
    """Other paths to the same file."""
    folder = photo.parent
    (folder / 'link.png').symlink_to(photo.name)
    (folder / 'link-to-link.png').symlink_to('link.png')
    os.link(photo, folder / 'hard.png')
    (folder / 'sub').mkdir()
    (folder / 'here').symlink_to('.')
    return {
        'itself': photo,
        'dots': folder / 'sub' / '..' / photo.name,
        'link': folder / 'link.png',
        'link to a link': folder / 'link-to-link.png',
        'hard link': folder / 'hard.png',
        'through a linked folder': folder / 'here' / photo.name,
    }


@pytest.mark.parametrize(
    'name', ['itself', 'dots', 'link', 'link to a link', 'hard link', 'through a linked folder']
)
def test_a_picture_is_not_written_over_its_source(vipllava, photo, content, name):
    output = spellings(photo)[name]
    for source, target in [(photo, output), (output, photo)]:
        ran = vipllava('draw', source, target, *MARK)
        assert ran.code == 2
        assert 'is also read' in ran.err
        assert ran.err.count('\n') == 1
        assert photo.read_bytes() == content
        assert output.is_symlink() == name.startswith('link')


def test_no_picture_of_a_question_is_overwritten(vipllava, photo, content, tmp_path):
    Image.new('RGB', (20, 20)).save(tmp_path / 'other.png')
    pictures = ('--image', photo, '--image', tmp_path / 'other.png')
    for target in ('photo.png', 'other.png'):
        before = (tmp_path / target).read_bytes()
        ran = vipllava('ask', 'What?', '--model', 'demo', *pictures, *MARK, '--save-image', tmp_path / target)
        assert ran.code == 2
        assert f'{target}: is also read' in ran.err
        assert (tmp_path / target).read_bytes() == before


@pytest.mark.parametrize('linked', ['symbolic', 'hard'])
@pytest.mark.parametrize(
    'command',
    [
        ('ask', 'What?', '--model', 'MODEL', '--image', 'photo.png', '--save-image', 'out.png'),
        ('bench', '--model', 'MODEL', '--what', 'vision', '--json', 'out.png'),
        ('bench', '--model', 'MODEL', '--what', 'vision', '--plot', 'out.png'),
        ('demo', '--output', 'out.png'),
    ],
    ids=lambda command: f'{command[0]} {command[-2]}',
)
def test_no_file_of_the_model_is_overwritten(vipllava, photo, tmp_path, monkeypatch, command, linked):
    from vipllava_jax import loading

    model = tmp_path / 'model'
    shutil.copytree(loading.bundled(), model)
    monkeypatch.setattr(loading, 'bundled', lambda: model)  # which `demo` reads
    monkeypatch.chdir(tmp_path)
    file, output = model / 'config.json', tmp_path / 'out.png'
    output.symlink_to(file) if linked == 'symbolic' else output.hardlink_to(file)
    before = file.read_bytes()
    ran = vipllava(*(str(model) if arg == 'MODEL' else arg for arg in command))
    assert ran.code == 2
    assert f'out.png: is also read ({model})' in ran.err or f'out.png lies in {model}, which is' in ran.err
    assert ran.err.count('\n') == 1
    assert file.read_bytes() == output.read_bytes() == before


def test_two_outputs_cannot_be_one_file(vipllava, photo, tmp_path):
    (tmp_path / 'link.png').symlink_to('plot.png')
    ran = vipllava('bench', '--json', tmp_path / 'link.png', '--plot', tmp_path / 'plot.png')
    assert ran.code == 2
    assert 'are one file' in ran.err


def test_the_target_of_a_link_is_written(vipllava, photo, tmp_path):
    for target in ('new.png', 'old.png'):
        (tmp_path / 'old.png').write_bytes(b'old')
        link = tmp_path / f'to {target}'
        link.symlink_to(target)
        assert vipllava('draw', photo, link, *MARK).code == 0
        assert link.is_symlink()
        with Image.open(tmp_path / target) as picture:
            assert picture.size == (90, 60)


@pytest.mark.parametrize('output', ['folder.png', 'missing/x.png', 'photo.png/x.png', 'x.txt', 'x', ''])
def test_an_invalid_output_is_one_line(vipllava, photo, content, tmp_path, monkeypatch, output):
    (tmp_path / 'folder.png').mkdir()
    monkeypatch.chdir(tmp_path)
    ran = vipllava('draw', photo, output, *MARK)
    assert ran.code == 2
    assert output in ran.err
    assert ran.err.count('\n') == 1
    assert sorted(os.listdir(tmp_path)) == ['folder.png', 'photo.png']


@pytest.mark.parametrize('ending', ['png', 'jpg', 'webp', 'bmp', 'gif', 'tiff'])
def test_a_full_disk_is_an_error_and_the_old_file_remains(tmp_path, photo, ending):
    output = tmp_path / f'out.{ending}'
    output.write_bytes(b'before')
    size = len(photo.read_bytes()) // 2

    code = (
        'import resource, runpy, sys; '
        f'resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); '
        "runpy.run_module('vipllava_jax', run_name='__main__')"
    )
    command = [sys.executable, '-B', '-c', code, 'draw', photo, output, *MARK]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f'out.{ending}' in done.stderr
    assert done.stderr.count('\n') == 1
    assert output.read_bytes() == b'before'
    assert sorted(os.listdir(tmp_path)) == sorted([output.name, photo.name])


@pytest.mark.parametrize('ending', ['jpg', 'webp'])
def test_a_picture_too_large_for_its_format_is_an_error(vipllava, tmp_path, ending):
    Image.new('RGB', (65_535, 2)).save(tmp_path / 'wide.png')
    mark = ('--mark', 'mask:1,0,9,2:red:units=pixel')
    ran = vipllava('draw', tmp_path / 'wide.png', tmp_path / f'x.{ending}', *mark)
    assert ran.code == 2
    assert 'cannot hold a picture of 65535x2' in ran.err
    assert not (tmp_path / f'x.{ending}').exists()
    assert vipllava('draw', tmp_path / 'wide.png', tmp_path / 'x.png', *mark).code == 0


def test_a_device_can_be_the_output(vipllava, photo, tmp_path):
    (tmp_path / 'null.png').symlink_to('/dev/null')
    assert vipllava('draw', photo, tmp_path / 'null.png', *MARK).code == 0
    (tmp_path / 'full.png').symlink_to('/dev/full')
    ran = vipllava('draw', photo, tmp_path / 'full.png', *MARK)
    assert ran.code == 2
    assert 'full.png' in ran.err
    assert Path('/dev/full').is_char_device()


@pytest.mark.parametrize('command', ['draw', 'demo'])
def test_the_picture_can_be_read_from_stdin(vipllava, photo, content, tmp_path, monkeypatch, command):
    from vipllava_jax.cli import demo

    monkeypatch.setattr(demo, 'answer_questions', lambda model, picture, questions: ['a star'])
    for source, output in ((photo, 'a.png'), ('-', 'b.png')):
        paths = {
            'draw': (source, tmp_path / output),
            'demo': ('--image', source, '--output', tmp_path / output),
        }
        ran = vipllava(command, *paths[command], *MARK, stdin=content)
        assert ran.code == 0, ran.err
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['What is {mark}?'], 'says {mark}, but there are 0 marks: add one (marks=[…], --mark SPEC)'),
        (['What?', *MARK], 'there is a mark but no image: give the image that it is on (--image FILE)'),
        (['What is {mark2}?', '--image', 'PHOTO', *MARK], 'says {mark2}, but there is 1 mark'),
        (['What is {mark0}?', '--image', 'PHOTO', *MARK], 'says {mark0}, but there is 1 mark'),
        (['What is {mark' + '9' * 5000 + '}?', '--image', 'PHOTO', *MARK], 'but there is 1 mark'),
        (['What?', '--image', 'PHOTO', '--mark', '2/point:1,1'], 'is on image 2, but there is 1 image'),
        (
            ['What?', '--image', 'PHOTO', '--mark', '9' * 5000 + '/point:1,1'],
            'the number of an image, from 1',
        ),
        (['What?', '--image', 'PHOTO', '--mark', '\u0662/point:1,1'], 'the number of an image, from 1'),
        (['What?', '--image', 'PHOTO', '--mark', 'mask:' + '1,' * 500_001 + '1:red'], 'at most'),
        (['What?', '--image', 'PHOTO', '--mark', 'x' * 1_000_000], 'write SHAPE'),
        (['What?', '--image', 'PHOTO', '--mark', 'point:\x1b[31m,1'], 'expected numbers'),
    ],
)
def test_an_invalid_mark_is_one_short_line(vipllava, photo, args, message):
    ran = vipllava('ask', '--model', 'demo', *[photo if arg == 'PHOTO' else arg for arg in args])
    assert ran.code == 2
    assert message in ran.err
    assert len(ran.err) <= 520
    assert ran.err[:-1].isprintable()


@pytest.mark.parametrize('width', ['1000000', '1e308', '1e-320'])
@pytest.mark.parametrize('shape', ['rectangle', 'mask-contour', 'scribble', 'arrow'])
def test_any_positive_width_is_drawn(vipllava, photo, tmp_path, shape, width):
    ran = vipllava('draw', photo, tmp_path / 'x.png', '--mark', f'{shape}:10,10,50,40:red:width={width}')
    assert ran.code == 0, ran.err


@pytest.mark.parametrize('width', ['nan', 'inf', '-1', '0', '1e999', '-inf', 'x', '9' * 400])
def test_an_invalid_width_is_an_error(vipllava, photo, tmp_path, width):
    ran = vipllava('draw', photo, tmp_path / 'x.png', '--mark', f'rectangle:10,10,50,40:red:width={width}')
    assert ran.code == 2
    assert 'width' in ran.err
    assert not (tmp_path / 'x.png').exists()
