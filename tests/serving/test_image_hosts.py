"""Pictures by URL: only from allowed hosts, only at public addresses, and bounded in every way."""

import asyncio
import contextlib
import itertools
import ssl
import subprocess
import time

import pytest

from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.served import Limits
from vipllava_jax.serving import image_hosts
from vipllava_jax.serving.bodies import BodyMemory
from vipllava_jax.serving.image_hosts import AllowedHost, ImageHosts, read_host, read_url
from vipllava_jax.serving.public_addresses import is_public

LIMITS = Limits(picture_bytes=100_000, pictures=4, body_bytes=150_000)
PICTURE = bytes(range(256)) * 40
OK = b'HTTP/1.1 200 OK\r\n'


class LocalHosts(ImageHosts):
    """Finds all names at this computer, and may connect to it."""

    addresses = ('127.0.0.1',)

    def __init__(self, hosts, limits=LIMITS):
        super().__init__(hosts, limits)
        self.resolved = []

    async def resolve(self, host, port):
        self.resolved.append(host)
        return [*self.addresses]

    def is_safe(self, address):
        return address.startswith('127.')


class Server:
    """Sends the same parts to each client; keeps what the clients send."""

    def __init__(self, *parts, pause=0.0):
        self.parts, self.pause = parts, pause
        self.heads, self.written, self.now, self.most = [], 0, 0, 0

    async def answer(self, reader, writer):
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            self.heads.append((await reader.readuntil(b'\r\n\r\n')).decode())
            for part in self.parts[0]() if callable(self.parts[0]) else self.parts:
                await asyncio.sleep(self.pause)
                writer.write(part)
                await writer.drain()
                self.written += len(part)
            writer.close()
            await writer.wait_closed()
        except OSError:
            pass  # the client has closed the connection
        finally:
            self.now -= 1
            writer.transport.abort()


def unlimited(size: int) -> None:
    """Takes memory of which there is enough."""


def fetch(server, urls=('http://pictures.test/a.png',), kind=LocalHosts, tls=None, grow=unlimited, **hosts):
    """What ImageHosts fetches from a server, whose port is added to the names of URLs that end in .test."""

    async def run():
        listening = await asyncio.start_server(server.answer, '127.0.0.1', 0, ssl=tls)
        port = listening.sockets[0].getsockname()[1]
        scheme = 'https' if tls else 'http'
        made = kind([f'{scheme}://{name}pictures.test:{port}' for name in ('', '*.')])
        for name, value in hosts.items():
            setattr(made, name, value)
        server.hosts = made
        try:
            return await made.fetch([url.replace('.test', f'.test:{port}') for url in urls], grow)
        finally:
            listening.close()
            await asyncio.sleep(0.01)  # until the server has seen the end

    return asyncio.run(run())


def refused(*args, **options) -> str:
    """The message of the ApiError that `fetch` raises."""
    with pytest.raises(ApiError) as error:
        fetch(*args, **options)
    assert error.value.status == 400
    return error.value.message


@pytest.mark.parametrize(
    'parts',
    [
        [OK + b'Content-Length: %d\r\n\r\n' % len(PICTURE), PICTURE[:100], PICTURE[100:]],
        [OK + b'Content-Length: %d\r\n\r\n' % len(PICTURE) + PICTURE + b'more'],
        [OK + b'Transfer-Encoding: chunked\r\n\r\n2800\r\n' + PICTURE + b'\r\n', b'0\r\n\r\n'],
        [OK + b'\r\n', PICTURE],
        [b'HTTP/1.0 200 OK\r\n\r\n', PICTURE],
        [b'HTTP/1.1 100 Continue\r\n\r\n', OK + b'content-encoding: Identity\r\n\r\n', PICTURE],
    ],
    ids=['length', 'bytes-after-the-end', 'chunked', 'until-closed', 'http-1.0', 'informational'],
)
def test_a_picture_arrives_as_it_is(parts):
    (content,) = fetch(Server(*parts)).values()
    assert content == PICTURE


def test_the_request_names_the_host_and_tells_nothing_else():
    server = Server(OK + b'Content-Length: 1\r\n\r\nx')
    fetch(server, ['http://PICTURES.test/a%20b.png?size=1&x=/#part'])
    line, host, *others = server.heads[0].rstrip().split('\r\n')
    assert line == 'GET /a%20b.png?size=1&x=/ HTTP/1.1'
    assert host.startswith('Host: pictures.test:')
    assert sorted(other.partition(':')[0] for other in others) == [
        *('Accept', 'Accept-Encoding', 'Connection', 'User-Agent'),
    ]


def test_several_pictures_are_fetched_each_once():
    server = Server(OK + b'Content-Length: 1\r\n\r\nx')
    urls = [f'http://pictures.test/{name}' for name in 'abc']
    assert [*fetch(server, urls).values()] == [b'x'] * 3
    assert len(server.heads) == 3


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    for name in ('http_proxy', 'HTTP_PROXY', 'https_proxy', 'ALL_PROXY'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    assert [*fetch(Server(OK + b'\r\n', PICTURE)).values()] == [PICTURE]


@pytest.mark.parametrize('status', [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status):
    server = Server(b'HTTP/1.1 %d Moved\r\nLocation: http://pictures.test/secret\r\n\r\n' % status)
    message = refused(server)
    assert f'redirects (status {status})' in message
    assert 'pictures.test' in message
    assert 'secret' not in message
    assert len(server.heads) == 1


@pytest.mark.parametrize(
    ('parts', 'message'),
    [
        ([b'HTTP/1.1 404 internal-host-7\r\n\r\n', b'secret'], 'status 404'),
        ([b'HTTP/1.1 206 Partial Content\r\nContent-Length: 6\r\n\r\nsecret'], 'status 206'),
        ([OK + b'Content-Encoding: gzip\r\n\r\n', b'secret'], 'compressed'),
        ([OK + b'Content-Length: 100\r\n\r\n', b'secret'], 'no complete response'),
        ([OK + b'Transfer-Encoding: chunked\r\n\r\n5\r\nsecret'], 'no complete response'),
        ([b'SSH-2.0-secret\r\n\r\n'], 'no complete response'),
        ([b'HTTP/1.1 101 Switching Protocols\r\nUpgrade: secret\r\n\r\n'], 'no complete response'),
        ([b''], 'no complete response'),
        ([OK + b'Secret: ' + b'x' * 100_000 + b'\r\n\r\n'], 'no complete response'),
    ],
    ids=[*('missing', 'partial', 'gzip', 'short', 'chunks', 'ssh', 'switch', 'nothing', 'headers')],
)
def test_what_is_not_a_picture_is_an_error_that_quotes_nothing(parts, message):
    found = refused(Server(*parts))
    assert message in found
    assert 'pictures.test' in found
    assert 'secret' not in found.lower()
    assert 'internal' not in found


@pytest.mark.parametrize(
    'head',
    [b'', b'Content-Length: 99999999\r\n', b'Transfer-Encoding: chunked\r\n'],
    ids=['unknown', 'announced', 'chunked'],
)
def test_no_more_is_read_than_a_picture_may_have(head):
    chunk = b'1000\r\n' + b'x' * 4096 + b'\r\n' if b'chunked' in head else b'x' * 4096
    server = Server(lambda: itertools.chain([OK + head + b'\r\n'], itertools.repeat(chunk)))
    assert 'more than 100000 bytes' in refused(server)
    assert server.written < 16 << 20  # what fits in the buffers of sockets


@pytest.mark.parametrize(
    'part',
    [b'1\r\nx\r\n' * 1000, b'HTTP/1.1 103 Early Hints\r\n\r\n' * 100],
    ids=['bytes', 'hints'],
)
def test_a_response_in_tiny_parts_takes_no_long_time(part):
    head = b'' if b'HTTP' in part else OK + b'Transfer-Encoding: chunked\r\n\r\n'
    server = Server(lambda: itertools.chain([head], itertools.repeat(part)))
    begin = time.perf_counter()
    assert 'small parts' in refused(server)
    assert time.perf_counter() - begin < 3


def test_pictures_together_may_not_be_larger_than_a_body():
    server = Server(OK + b'\r\n', b'x' * 90_000)
    assert 'more than 150000 bytes together' in refused(server, [f'http://pictures.test/{i}' for i in 'ab'])


@pytest.mark.parametrize('parts', [[b''], [OK + b'\r\n', *[b'x'] * 100]], ids=['silent', 'slow'])
def test_the_time_is_bounded_in_total(parts, monkeypatch):
    monkeypatch.setattr(image_hosts, 'SECONDS', 0.3)
    server = Server(*parts, pause=0.1 if len(parts) > 1 else 60)
    begin = time.perf_counter()
    assert 'from pictures.test took longer than 0.3 seconds' in refused(server)
    assert time.perf_counter() - begin < 2


def test_each_picture_takes_memory_when_it_has_arrived():
    server, memory = Server(OK + b'Content-Length: 60\r\n\r\n' + b'x' * 60), BodyMemory(100)
    urls = [f'http://pictures.test/{name}' for name in 'ab']
    with memory.hold() as grow, pytest.raises(ApiError) as error:
        fetch(server, urls, grow=grow)
    assert (error.value.status, error.value.code) == (429, 'too_many_bytes')
    assert not memory.used


def test_few_pictures_are_fetched_at_the_same_time():
    server = Server(OK + b'Content-Length: 1\r\n\r\nx', pause=0.05)

    async def run():
        listening = await asyncio.start_server(server.answer, '127.0.0.1', 0)
        port = listening.sockets[0].getsockname()[1]
        hosts = LocalHosts([f'http://pictures.test:{port}'])
        urls = [f'http://pictures.test:{port}/{number}' for number in range(3 * image_hosts.AT_ONCE)]
        await asyncio.gather(*(hosts.fetch([url], unlimited) for url in urls))
        listening.close()

    asyncio.run(run())
    assert server.most == image_hosts.AT_ONCE


def test_who_waits_too_long_for_a_turn_is_asked_to_come_again(monkeypatch):
    monkeypatch.setattr(image_hosts, 'SECONDS', 0.2)

    async def run():
        hosts = LocalHosts(['pictures.test'])
        for _ in range(image_hosts.AT_ONCE):
            await hosts._at_once.acquire()
        await hosts.fetch(['https://pictures.test/'], unlimited)

    with pytest.raises(ApiError) as error:
        asyncio.run(run())
    assert (error.value.status, error.value.retry_after) == (503, 1)


def test_an_error_ends_the_other_downloads():
    server = Server(b'HTTP/1.1 500 Error\r\n\r\n')

    async def answer(reader, writer):
        if b'/slow' in await reader.readline():
            with contextlib.suppress(OSError):
                await reader.read()  # until the client closes the connection
            writer.transport.abort()
        else:
            await Server.answer(server, reader, writer)

    server.answer = answer
    begin = time.perf_counter()
    assert 'status 500' in refused(server, ['http://pictures.test/slow', 'http://pictures.test/bad'])
    assert time.perf_counter() - begin < 3


# Hosts


@pytest.mark.parametrize(
    ('text', 'host'),
    [
        ('example.com', AllowedHost('https', 'example.com', 443)),
        ('Example.COM:8443', AllowedHost('https', 'example.com', 8443)),
        ('https://example.com/', AllowedHost('https', 'example.com', 443)),
        ('http://*.example.com', AllowedHost('http', '*.example.com', 80)),
        ('http://192.0.2.1:8080', AllowedHost('http', '192.0.2.1', 8080)),
    ],
)
def test_hosts_are_read(text, host):
    assert read_host(text) == host


@pytest.mark.parametrize(
    'text',
    [
        *('', '*', '*.', 'ftp://example.com', 'example.com/pictures', 'user@example.com', 'exämple.com'),
        *('example.com:0', 'example.com:70000', '*example.com', 'a.*.com', '[::1]', '.example.com', 'a b'),
    ],
)
def test_what_is_not_a_host_is_refused(text):
    with pytest.raises(ValueError, match=r'host of pictures|from 1 to 65535'):
        ImageHosts([text], LIMITS)


@pytest.mark.parametrize(
    ('allowed', 'url', 'is_allowed'),
    [
        ('a.test', 'https://a.test/x', True),
        ('a.test', 'https://A.TEST:443', True),
        ('a.test', 'http://a.test/x', False),
        ('a.test', 'https://a.test:444/x', False),
        ('a.test', 'https://b.a.test/x', False),
        ('a.test', 'https://a.test.evil.test/x', False),
        ('http://a.test', 'http://a.test', True),
        ('http://a.test', 'https://a.test', False),
        ('a.test:444', 'https://a.test:444/', True),
        ('a.test:444', 'https://a.test/', False),
        ('*.a.test', 'https://c.b.a.test/', True),
        ('*.a.test', 'https://a.test/', False),
        ('*.a.test', 'https://evila.test/', False),
    ],
)
def test_only_allowed_hosts_are_resolved(allowed, url, is_allowed, monkeypatch):
    hosts = LocalHosts([allowed])
    hosts.addresses = ('192.168.0.1',)
    with pytest.raises(ApiError) as error:
        asyncio.run(hosts.fetch([url], unlimited))
    assert bool(hosts.resolved) == is_allowed
    assert ('not public' if is_allowed else '--allow-image-host') in error.value.message


def test_without_hosts_nothing_is_fetched():
    with pytest.raises(ApiError, match='data URI.*--allow-image-host'):
        asyncio.run(ImageHosts([], LIMITS).fetch(['https://example.com/a.png'], unlimited))


def test_one_host_that_is_not_allowed_stops_all():
    server = Server(OK + b'\r\n')
    assert 'other.example' in refused(server, ['http://pictures.test/a', 'http://other.example/b'])
    assert not server.hosts.resolved


def test_too_many_pictures_are_refused_before_any_is_fetched():
    server = Server(OK + b'\r\n')
    assert 'at most 4' in refused(server, [f'http://pictures.test/{number}' for number in range(5)])
    assert not server.hosts.resolved


@pytest.mark.parametrize(
    'url',
    [
        'https://user@a.test/',
        'https://user:password@a.test/',
        'https://a.test@evil.test/',
        'https://evil.test\\@a.test/',
        'https://a.test\\.evil.test/',
        'https:\\\\a.test/',
        'https://a.te\tst/',
        'https://a.test/\r\nX: y',
        'https://a.test/\x00',
        ' https://a.test/',
        'https://a.test /',
        'https://a.test./',
        'https://a%2etest/',
        'https://а.test/',  # a Cyrillic letter
        'https://a.test/ä',
        'https://[::1]/',
        'https://[::ffff:127.0.0.1]/',
        'https://a.test:/',
        'https://a.test:0/',
        'https://a.test:99999/',
        'https://a.test:٤٤٣/',
        'https:///a',
        'https://',
        'https:a.test',
        '//a.test/',
        'a.test',
        'ftp://a.test/',
        'file:///etc/passwd',
        'gopher://a.test/',
        'https://a.test/' + 'x' * 5000,
    ],
)
def test_urls_that_can_be_understood_in_two_ways_are_refused(url):
    with pytest.raises(ApiError) as error:
        read_url(url)
    assert error.value.status == 400
    assert 'password' in error.value.message or 'port' in error.value.message
    assert 'passwd' not in error.value.message


# Addresses


@pytest.mark.parametrize(
    'address',
    [
        *('127.0.0.1', '127.9.9.9', '0.0.0.0', '10.1.2.3', '172.16.0.1', '192.168.1.1', '169.254.169.254'),
        *('100.64.0.1', '192.0.0.8', '192.0.0.9', '192.0.2.1', '192.88.99.1', '198.18.0.1', '203.0.113.1'),
        *('224.0.0.1', '239.255.255.250', '240.0.0.1', '255.255.255.255'),
        *('::', '::1', 'fe80::1', 'fe80::1%eth0', 'fc00::1', 'fd00:ec2::254', 'fec0::1', 'ff02::1'),
        *('::ffff:127.0.0.1', '::ffff:8.8.8.8', '::ffff:0:8.8.8.8', '::127.0.0.1', '64:ff9b::7f00:1'),
        *('64:ff9b::808:808', '64:ff9b:1::1', '100::1', '2001::1', '2001:db8::1', '2002:7f00:1::1'),
        *('3fff::1', '5f00::1', '4000::1', '2606:4700::1111%1%2', '', 'localhost', '8.8.8', '0x08.8.8.8'),
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize('address', ['8.8.8.8', '1.1.1.1', '223.255.255.1', '2606:4700::1111', '2a00::1'])
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    'name', ['localhost', '127.0.0.1', '2130706433', '0x7f000001', '0177.0.0.1', '127.1']
)
def test_names_of_this_computer_are_refused_however_they_are_written(name):
    hosts = ImageHosts([f'http://{name}:1'], LIMITS)
    with pytest.raises(ApiError, match='not public|has no address'):
        asyncio.run(hosts.fetch([f'http://{name}:1/'], unlimited))


def test_one_address_that_is_not_safe_is_enough():
    server = Server(OK + b'\r\n')
    message = refused(server, addresses=('127.0.0.1', '10.0.0.1'))
    assert 'not public' in message
    assert '10.0.0.1' not in message  # which would tell how the network looks inside
    assert not server.heads


def test_a_name_is_resolved_once_and_its_checked_address_connected_to():
    class Rebinding(LocalHosts):
        async def resolve(self, host, port):
            await super().resolve(host, port)
            return ['127.0.0.1'] if len(self.resolved) == 1 else ['169.254.169.254']

    server = Server(OK + b'\r\n', PICTURE)
    assert [*fetch(server, kind=Rebinding).values()] == [PICTURE]
    assert server.hosts.resolved == ['pictures.test']


def test_the_next_address_is_tried_if_one_accepts_no_connection():
    server = Server(OK + b'\r\n', PICTURE)
    assert [*fetch(server, addresses=('127.0.0.2', '127.0.0.1')).values()] == [PICTURE]
    assert 'accepts no connection' in refused(Server(b''), addresses=('127.0.0.2',))


def test_a_name_without_an_address():
    async def no_address(host, port):
        raise OSError(-2, 'Name or service not known')

    assert 'pictures.test, has no address' in refused(Server(b''), resolve=no_address)


# TLS


@pytest.fixture(scope='module')
def certificate(tmp_path_factory):
    """A self-signed certificate of pictures.test, as contexts of a server and of a client that trusts it."""
    folder = tmp_path_factory.mktemp('certificate')
    names = ['-subj', '/CN=pictures.test', '-addext', 'subjectAltName=DNS:pictures.test']
    keys = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2']
    files = ['-keyout', folder / 'key.pem', '-out', folder / 'cert.pem']
    subprocess.run(['openssl', 'req', '-x509', *keys, *names, *files], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / 'cert.pem', folder / 'key.pem')
    return server, ssl.create_default_context(cafile=folder / 'cert.pem')


def test_the_certificate_is_checked_for_the_name_that_was_asked_for(certificate):
    tls, trusting = certificate
    names = []
    tls.sni_callback = lambda connection, name, context: names.append(name)
    server = Server(OK + b'Content-Length: 1\r\n\r\nx')
    found = fetch(server, ['https://pictures.test/'], tls=tls, certificates=trusting)
    assert ([*found.values()], names) == ([b'x'], ['pictures.test'])
    other = refused(server, ['https://other.pictures.test/'], tls=tls, certificates=trusting)
    assert 'other.pictures.test, has no valid certificate' in other


def test_a_certificate_that_nobody_has_signed_is_refused(certificate):
    server = Server(OK + b'\r\n')
    assert 'no valid certificate' in refused(server, ['https://pictures.test/'], tls=certificate[0])
    assert not server.heads
