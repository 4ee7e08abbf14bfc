"""The files of the page: what is served, under which policy, and how much of it there is."""

import gzip
import http.client
import io
import re
from importlib.resources import files

import pytest
from PIL import Image

from vipllava_jax.inputs.marks import COLORS, PREPOSITIONS, Mark
from vipllava_jax.serving.page_files import FOLDER, example

PAGE = [*files('vipllava_jax.serving').joinpath(FOLDER).iterdir()]
MOST = 60_000  # bytes of the page's files in all


def test_the_page_is_served_with_a_strict_policy(live):
    server = live()
    for path, kind in (
        ('/', 'text/html'),
        ('/page/style.css', 'text/css'),
        ('/page/main.js', 'text/javascript'),
    ):
        found = server.ask('GET', path)
        assert found.status == 200
        assert found.headers['content-type'].startswith(kind)
        policy = found.headers['content-security-policy']
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert 'unsafe' not in policy


def test_files_are_compressed_for_those_who_take_it(live):
    server = live()
    plain = server.ask('GET', '/page/main.js')
    packed = server.ask('GET', '/page/main.js', headers={'accept-encoding': 'gzip, br'})
    assert packed.headers['content-encoding'] == 'gzip'
    assert gzip.decompress(packed.body) == plain.body


@pytest.mark.parametrize(
    'path', ['/page/', '/page/nothing.js', '/page/../app.py', '/page/%2e%2e%2fapp.py', '/page/a%00']
)
def test_nothing_else_is_served(live, path):
    server = live()
    connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=20)
    connection.request('GET', path)
    assert connection.getresponse().status == 404
    connection.close()


def test_the_page_knows_what_the_server_offers(live):
    found = live(api_keys=('secret',)).ask('GET', '/page/about.json').json
    assert found['needs_key'] is True
    assert 'secret' not in str(found)
    assert [*found['colors']] == [*COLORS]
    assert [*found['prepositions']] == [*PREPOSITIONS]


def test_the_example_has_a_mark_on_it(live):
    picture = live().ask('GET', '/page/example.png')
    data, mark = example()
    assert picture.body == data
    with Image.open(io.BytesIO(data)) as image:
        Mark(**mark).region(image.size)


def test_the_page_is_small_and_has_nothing_from_elsewhere():
    assert sum(len(file.read_bytes()) for file in PAGE) < MOST
    for file in PAGE:
        text = file.read_text()
        assert not re.search(r'https?://(?!www\.w3\.org/2000/svg)', text), file.name
        assert not re.search(r'innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(', text), (
            file.name
        )
        assert ' style=' not in text


def test_the_modules_import_only_one_another():
    names = {file.name for file in PAGE}
    for file in PAGE:
        for name in re.findall(r"^import .*?'(.*)';", file.read_text(), re.MULTILINE):
            assert name.removeprefix('./') in names, f'{file.name} imports {name}'
