"""The child process that renders chat templates: `python -I -S template_worker.py BYTES FOLDER…`.

A checkpoint's template is a program by a stranger, so it runs here, with little memory, few seconds and no
rights to files. BYTES is the address space that the process may use, and the folders hold jinja2 and
markupsafe; nothing of this package is imported. Requests come on stdin and replies go to stdout, each as its
length in eight bytes followed by JSON. The process ends with its input.
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
LARGEST = 1_000_000  # entries or characters that repeating a list or text makes, or bits of a power


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


@no_type_check
def environment() -> Any:
    """The environment in which transformers renders chat templates, without its tracker of answers."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}` marks an answer for training; what is in it is rendered as it stands."""

        tags = {'generation'}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
            return nodes.CallBlock(self.call_method('_body'), [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> str:
            return caller()

    class PlainDict:
        """What templates call `dict`, without the attributes of the type."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any, **kwargs: Any) -> dict:
            return dict.fromkeys(*args, **kwargs)

    class PublicNamespace(Namespace):
        """A namespace that stores no names with a leading underscore."""

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

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def strftime_now(format):  # `format` may be given by name
        return datetime.now().strftime(format)

    class Sandbox(ImmutableSandboxedEnvironment):
        """Refuses at once what would end this process in the middle of an operation."""

        intercepted_binops = frozenset({'*', '**'})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if isinstance(left, int) and isinstance(right, int):
                size = left.bit_length() * right if operator == '**' else 0
            else:
                sides = [side if isinstance(side, int) else _length(side) for side in (left, right)]
                size = sides[0] * sides[1] if operator == '*' else 0
            if size > LARGEST:
                raise SecurityError(f'{operator} makes something too large')
            return super().call_binop(context, operator, left, right)

    made = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], cache_size=8)
    made.filters['tojson'] = tojson
    made.globals |= {
        'raise_exception': raise_exception,
        'strftime_now': strftime_now,
        'dict': PlainDict(),
        'namespace': PublicNamespace,
    }
    return made


def restrict(memory: int) -> None:
    """Limits what the process can do from now on, as far as the system has such limits."""
    import jinja2.debug  # noqa: F401  jinja2 imports it when a template fails, which may be too late

    none = [resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, getattr(resource, 'RLIMIT_NPROC', None)]
    for kind, most in [*((kind, 0) for kind in none if kind is not None), (resource.RLIMIT_AS, memory)]:
        with contextlib.suppress(ValueError, OSError):  # macOS does not limit address spaces
            hard = resource.getrlimit(kind)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, most))


def allow(seconds: int) -> None:
    """Lets the system end this process when it has computed for so many seconds more."""
    with contextlib.suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        until = int(time.process_time()) + seconds + 1
        resource.setrlimit(
            resource.RLIMIT_CPU, (until if hard == resource.RLIM_INFINITY else min(until, hard), hard)
        )


def reply(made: Any, request: dict[str, Any]) -> dict[str, Any]:
    """What a request's template writes, or why it writes nothing."""
    pieces, length = [], 0
    try:
        for piece in made.from_string(request['source']).generate(request['variables']):
            pieces.append(piece)
            length += len(piece)
            if length > request['longest']:
                return {'error': f'it writes more than {request["longest"]} characters'}
        return {'text': ''.join(pieces)}
    except MemoryError:
        return {'memory': True}
    except Exception as error:  # a template may fail in any way that Python can
        return {'error': (str(error)[:1000] or type(error).__name__)}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    requests, replies = os.fdopen(0, 'rb'), os.fdopen(1, 'wb')

    def send(message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        replies.write(HEADER.pack(len(body)) + body)
        replies.flush()

    try:
        sys.path.extend(sys.argv[2:])
        made = environment()
        restrict(int(sys.argv[1]))
    except Exception as error:
        return send({'error': f'{type(error).__name__} {error}'})
    send({})
    while len(header := requests.read(HEADER.size)) == HEADER.size:
        request = json.loads(requests.read(*HEADER.unpack(header)))
        allow(request['seconds'])
        send(reply(made, request))


if __name__ == '__main__':
    with contextlib.suppress(BrokenPipeError):  # whoever asked is gone
        main()
