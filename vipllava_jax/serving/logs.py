"""Logs of a server: a line for each request, and the errors of libraries in the same format.

Clients choose paths, prompts and what errors quote, so everything is escaped: a request has exactly one line
and sends no commands to a terminal. Prompts are left out unless they are asked for; so are the messages of
errors of the client, which may quote the request. Pictures are never written.
"""

import contextlib
import logging
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from vipllava_jax.engine.reply import Reply
from vipllava_jax.messages import printable, safe_answer, safe_json
from vipllava_jax.protocol.errors import ApiError

Format = Literal['text', 'json']
PLAIN = re.compile(r'[!#-~]+')  # values that are not put in quotes
LINE_ENDS = {0x2028: r'\u2028', 0x2029: r'\u2029'}  # which some programs understand as ends of lines
PROMPT_CHARACTERS = 10_000
TRACEBACK_CHARACTERS = 20_000  # the end of a longer one is kept
FIRST = 'time', 'client', 'method', 'path', 'status'  # the fields without names in a line of text


class RequestLog:
    """Writes a line for each request to a stream: text or JSON, with `prompts` also what was asked."""

    def __init__(self, stream: TextIO, format: Format, prompts: bool) -> None:
        self._stream, self._line = stream, _json if format == 'json' else _text
        self._prompts = prompts

    def request(
        self,
        id: str,
        method: str,
        path: str,
        status: int,
        seconds: float,
        replies: Sequence[Reply],
        error: ApiError | None,
        prompt: str | None,
        client: str,
    ) -> None:
        """Writes the line of a request that has ended; an output that is closed or full is ignored."""
        fields = {
            'time': _time(datetime.now(UTC)),
            'client': printable(client, 100),
            'method': printable(method, 20),
            'path': printable(path, 200),
            'status': status,
            'seconds': round(seconds, 4),
            'id': printable(id, 100),
            **_answers(replies),
            **(self._error(error) if error else {}),
        }
        if self._prompts and prompt is not None:
            fields['prompt'] = prompt[:PROMPT_CHARACTERS]
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(self._line(fields) + '\n')
            self._stream.flush()

    def _error(self, error: ApiError) -> dict[str, Any]:
        fields = {'error': error.code or error.type, 'param': error.param}
        if self._prompts or error.status >= 500:
            fields['message'] = error.message
        return {name: printable(value) for name, value in fields.items() if value}


def configure(format: Format) -> None:
    """Makes all loggers, such as uvicorn's, write their warnings and errors to stderr in this format.

    Uvicorn keeps these settings if `log_config` is None; its own lines for requests are turned off.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(format))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger('uvicorn.access').disabled = True


class _Formatter(logging.Formatter):
    """Log records of libraries in the format of the lines of requests."""

    def __init__(self, format: Format) -> None:
        super().__init__()
        self._format = format

    def format(self, record: logging.LogRecord) -> str:
        time = _time(datetime.fromtimestamp(record.created, UTC))
        message = printable(record.getMessage(), 2000)
        trace = self.formatException(record.exc_info) if record.exc_info else ''
        trace = trace[-TRACEBACK_CHARACTERS:]
        if self._format == 'json':
            fields = {'time': time, 'level': record.levelname, 'logger': record.name, 'message': message}
            return _json({**fields, 'traceback': trace} if trace else fields)
        lines = [f'{time} {record.levelname} {record.name}: {message}', *safe_answer(trace).splitlines()]
        return '\n  '.join(lines)  # the indentation tells them from lines of requests


def _answers(replies: Sequence[Reply]) -> dict[str, Any]:
    """The fields of the answers of a request; none if the engine was not asked."""
    if not replies:
        return {}
    firsts = [
        reply.times.first_token - reply.times.submitted
        for reply in replies
        if reply.times.first_token is not None
    ]
    reasons = Counter(reason or 'aborted' for reply in replies for reason in reply.ends.reasons)
    return {
        **({'first_token_seconds': round(min(firsts), 4)} if firsts else {}),
        'prompt_tokens': sum(reply.prompt_tokens for reply in replies),
        'cached_tokens': sum(reply.cached_tokens for reply in replies),
        'new_tokens': sum(int(reply.ends.lengths.sum()) for reply in replies),
        'finish_reasons': dict(reasons),
    }


def _text(fields: Mapping[str, Any]) -> str:
    """Fields as one line of words; the values of most fields follow their names."""
    named = [f'{name}={_word(value)}' for name, value in fields.items() if name not in FIRST]
    return ' '.join([*(_word(fields[name]) for name in FIRST), *named])


def _word(value: Any) -> str:
    """A value without spaces outside of quotes."""
    if isinstance(value, Mapping):  # such as the counts of finish reasons
        return ','.join(f'{name}:{count}' for name, count in value.items())
    text = str(value)
    return text if PLAIN.fullmatch(text) else _json(text)


def _json(data: Any) -> str:
    return safe_json(data).translate(LINE_ENDS)


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec='milliseconds')
