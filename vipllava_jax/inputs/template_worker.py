"""The child process that renders chat templates: `python -I -S template_worker.py BYTES FOLDER…`.

A checkpoint's template is an untrusted program, so it runs in this process, with limits on memory, time and
file sizes. BYTES is the limit of the address space, and the folders contain jinja2 and markupsafe; nothing of
this package is imported. Requests arrive on stdin and replies go to stdout, each as its length in eight bytes
followed by JSON. The process ends when stdin is closed.
"""

import contextlib
import json
import os
import resource
import signal
import struct
import sys
import time
from datetime import datetime
from typing import Any, no_type_check

HEADER = struct.Struct('>Q')
MAX_RESULT = 1_000_000  # entries or characters of a repeated list or text, or bits of a power


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


@no_type_check
def environment() -> Any:
    """The Jinja environment of transformers' chat templates, without tracking of generated parts."""
    from jinja2.ext import loopcontrols

    extensions = [_generation(), loopcontrols]
    jinja = _sandbox()(trim_blocks=True, lstrip_blocks=True, extensions=extensions, cache_size=8)
    jinja.filters['tojson'] = _tojson
    jinja.globals |= {
        'raise_exception': _raise_exception,
        'strftime_now': _strftime_now,
        'dict': _PlainDict(),
        'namespace': _namespace(),
    }
    return jinja


@no_type_check
def _sandbox() -> Any:
    """The class of the environment, which bounds the results of operators."""
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        """Refuses operations whose results would exceed the limits."""

        intercepted_binops = frozenset({'*', '**'})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if isinstance(left, int) and isinstance(right, int):
                size = left.bit_length() * right if operator == '**' else 0
            else:
                sides = [side if isinstance(side, int) else _length(side) for side in (left, right)]
                size = sides[0] * sides[1] if operator == '*' else 0
            if size > MAX_RESULT:
                raise SecurityError(f'the result of {operator} is too large')
            return super().call_binop(context, operator, left, right)

    return Sandbox


@no_type_check
def _generation() -> Any:
    """The extension for `{% generation %}`."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        """`{% generation %}` marks an answer for training; its content is rendered unchanged."""

        tags = {'generation'}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
            return nodes.CallBlock(self.call_method('_body'), [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> str:
            return caller()

    return Generation


@no_type_check
def _namespace() -> Any:
    """The class that templates call `namespace`."""
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    class PublicNamespace(Namespace):
        """A namespace that refuses names with a leading underscore."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, args = args[0], args[1:]
            attributes = dict(*args, **kwargs)
            for name in attributes:
                PublicNamespace.check(name)
            Namespace.__init__(self, attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            PublicNamespace.check(name)
            Namespace.__setitem__(self, name, value)

        @staticmethod
        def check(name: Any) -> None:
            if isinstance(name, str) and name.startswith('_'):
                raise SecurityError(f'a namespace cannot store the underscore-prefixed name {name[:40]!r}')

    return PublicNamespace


class _PlainDict:
    """`dict` for templates, without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict:
        return dict.fromkeys(*args, **kwargs)


def _raise_exception(message: str) -> None:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


@no_type_check
def _tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(format: str) -> str:  # templates may pass `format` by name
    return datetime.now().strftime(format)


def limit_resources(memory: int) -> None:
    """Limits memory, files and processes from now on, as far as the system supports it."""
    import jinja2.debug  # noqa: F401  otherwise imported when a template fails, perhaps without memory left

    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_AS: memory}
    if hasattr(resource, 'RLIMIT_NPROC'):
        limits[resource.RLIMIT_NPROC] = 0
    for name, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):  # macOS does not limit address spaces
            hard = resource.getrlimit(name)[1]
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(name, (limit, limit))


def limit_cpu_time(seconds: int) -> None:
    """Makes the system end this process after so many more seconds of processor time."""
    with contextlib.suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        until = int(time.process_time()) + seconds + 1
        resource.setrlimit(
            resource.RLIMIT_CPU, (until if hard == resource.RLIM_INFINITY else min(until, hard), hard)
        )


def reply(jinja: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The output of a request's template, or its error."""
    pieces, length = [], 0
    try:
        for piece in jinja.from_string(request['source']).generate(request['variables']):
            pieces.append(piece)
            length += len(piece)
            if length > request['max_characters']:
                return {'error': f'it writes more than {request["max_characters"]} characters'}
        return {'text': ''.join(pieces)}
    except MemoryError:
        return {'memory': True}
    except Exception as error:  # a template may fail in any way that Python can
        return {'error': (str(error)[:1000] or type(error).__name__)}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent process
    requests, replies = os.fdopen(0, 'rb'), os.fdopen(1, 'wb')

    def send(message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        replies.write(HEADER.pack(len(body)) + body)
        replies.flush()

    try:
        sys.path.extend(sys.argv[2:])
        jinja = environment()
        limit_resources(int(sys.argv[1]))
    except Exception as error:
        return send({'error': f'{type(error).__name__} {error}'})
    send({})
    while len(header := requests.read(HEADER.size)) == HEADER.size:
        request = json.loads(requests.read(*HEADER.unpack(header)))
        limit_cpu_time(request['seconds'])
        send(reply(jinja, request))


if __name__ == '__main__':
    with contextlib.suppress(BrokenPipeError):  # the parent process has ended
        main()
