"""Names the rows of a batch: each has an id that no earlier row has."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vipllava_jax.batch_files.ids import IdSet, unused_name
from vipllava_jax.batch_files.lines import REQUEST_ID
from vipllava_jax.batch_files.row_text import parse_fields
from vipllava_jax.batch_files.sources import RawRow
from vipllava_jax.data import vip_bench
from vipllava_jax.data.row_offsets import MAX_ROW_BYTES
from vipllava_jax.data.row_values import check_values
from vipllava_jax.messages import brief

MAX_ID = 1000  # characters


class NamedRow(NamedTuple):
    """A row with its id: fields, or what is wrong with it."""

    id: str
    fields: Mapping[str, Any]
    error: str = ''


@dataclass
class Names:
    """Gives every row an id that no earlier row has."""

    taken: IdSet = field(default_factory=IdSet)

    def of_text(self, row: RawRow) -> NamedRow:
        """A row as read, with its fields and its id."""
        if row.size > MAX_ROW_BYTES:
            error = f'has {row.size:,} bytes, expected at most {MAX_ROW_BYTES:,}'
            return self._unnamed(row.number, {}, error)
        try:
            fields = parse_fields(row.text)
        except ValueError as error_:
            return self._unnamed(row.number, {}, str(error_))
        return self._named(fields, row.number)

    def of_fields(self, fields: Any, number: int) -> NamedRow:
        """Row `number`, from 1, given by its fields, with its id."""
        if not isinstance(fields, Mapping):
            return self._unnamed(number, {}, f'expected a dict with a "prompt", found {brief(fields)}')
        try:
            check_values(dict(fields))
        except ValueError as error:
            return self._unnamed(number, {}, str(error))
        return self._named(fields, number)

    def _named(self, fields: Mapping[str, Any], number: int) -> NamedRow:
        """A row with its id; 'line N' if it has none, or an invalid one, or that of an earlier row."""
        try:
            id = _read_id(fields)
        except ValueError as error:
            return self._unnamed(number, fields, str(error))
        if id is None:
            return self._unnamed(number, fields)
        if not self.taken.add(id):
            return self._unnamed(
                number, fields, f'an earlier row has the same id, {brief(id)}: give it another'
            )
        return NamedRow(id, fields)

    def _unnamed(self, number: int, fields: Mapping[str, Any], error: str = '') -> NamedRow:
        return NamedRow(unused_name(f'line {number}', self.taken), fields, error)


def is_vip_bench(fields: Mapping[str, Any]) -> bool:
    """Whether a row is a question of ViP-Bench, not of the plain dialect."""
    return 'prompt' not in fields and vip_bench.is_vip_bench(fields)


def is_request(fields: Mapping[str, Any]) -> bool:
    """Whether a row is a request in OpenAI's dialect."""
    return REQUEST_ID in fields and 'prompt' not in fields


def _read_id(fields: Mapping[str, Any]) -> str | None:
    """The id of a row, if it has one; ValueError for what is not one."""
    name = REQUEST_ID if is_request(fields) else 'id'
    value = fields.get(name)
    if value is None and is_vip_bench(fields):
        value = vip_bench.question_id(fields)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f'"{name}" is {brief(value)}, expected a string')
    if len(str(value)) > MAX_ID:
        raise ValueError(f'"{name}" has {len(str(value)):,} characters, expected at most {MAX_ID:,}')
    return str(value)
