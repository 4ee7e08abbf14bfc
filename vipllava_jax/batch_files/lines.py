"""The lines of a batch: how the answers to a row and its errors are written, in the dialect of the row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vipllava_jax.messages import printable

if TYPE_CHECKING:
    from vipllava_jax.engine.reply import Reply

ANSWERS = ('answer', 'answers')
REQUEST_ID = 'custom_id'  # the id of a row, and of its line, in OpenAI's dialect


class Lines(Protocol):
    """Writes the line of one row."""

    def answers(self, replies: Sequence['Reply']) -> dict[str, Any]:
        """The line of a row whose questions are answered."""
        ...

    def error(self, error: Exception) -> dict[str, Any]:
        """The line of a row that cannot be answered."""
        ...


@dataclass(frozen=True)
class PlainLines:
    """Lines such as {"id", "answer", …}, with the numbers of tokens, or {"id", "error"}."""

    id: str
    row: dict[str, Any]  # the fields that are copied from the row

    def answers(self, replies: Sequence['Reply']) -> dict[str, Any]:
        (reply,) = replies
        answers = reply.result(timeout=0)
        first = answers[0]
        several = len(answers) > 1
        line: dict[str, Any] = {'id': self.id}
        line |= {'answers': [answer.text for answer in answers]} if several else {'answer': first.text}
        reasons = [answer.finish_reason for answer in answers]
        counts = [len(answer.ids) for answer in answers]
        line |= {'finish_reason': reasons if several else reasons[0], 'prompt_tokens': first.prompt_tokens}
        line['new_tokens'] = counts if several else counts[0]
        return line | self._row

    def error(self, error: Exception) -> dict[str, Any]:
        return {'id': self.id, 'error': printable(str(error))} | self._row

    @property
    def _row(self) -> dict[str, Any]:
        return {'row': self.row} if self.row else {}


def line_id(line: Mapping[str, Any]) -> Any:
    """The id of the row of a line."""
    return line[REQUEST_ID] if REQUEST_ID in line else line.get('id')


def is_error(line: Mapping[str, Any]) -> bool:
    """Whether a line says that its row cannot be answered."""
    if REQUEST_ID not in line:
        return 'error' in line
    response = line.get('response')
    return not isinstance(response, Mapping) or response.get('status_code') != 200


def is_line(record: Mapping[str, Any]) -> bool:
    """Whether an object is either an answer or an error of a batch."""
    if REQUEST_ID in record:
        parts = [isinstance(record.get(name), Mapping) for name in ('response', 'error')]
        return isinstance(record[REQUEST_ID], str) and sum(parts) == 1
    is_answer = any(name in record for name in ANSWERS)
    return isinstance(record.get('id'), str) and is_answer != ('error' in record)


def new_tokens(line: Mapping[str, Any]) -> int:
    """How many tokens of answers a line stands for."""
    if is_error(line):
        return 0
    if REQUEST_ID in line:
        return int(line['response']['body']['usage']['completion_tokens'])
    new = line['new_tokens']
    return sum(new) if isinstance(new, list) else int(new)
