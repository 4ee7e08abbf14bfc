"""Reads files of boxes and marks: a JSON list, JSON lines, marks as text, or numbers separated by commas."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from vipllava_jax.data.row_values import check_values
from vipllava_jax.files import check_encoding, read_bytes
from vipllava_jax.inputs.coordinates import as_sequence, is_number
from vipllava_jax.messages import brief, one_line

FORMS = 'a box x1,y1,x2,y2, a mark such as rectangle:40,60,180,220, or either of them in JSON'


class PlacedRegion(NamedTuple):
    """A region in a file, as read, and where it is."""

    where: str  # 'boxes.csv, line 3'
    value: Any


def read_regions(path: Path) -> list[PlacedRegion]:
    """The regions in a file; ValueError, naming the line, if it has another form or none."""
    if not path.exists():
        raise FileNotFoundError(f'no file of boxes {str(path)!r}: check the path')
    data = read_bytes(path)
    check_encoding(path, data[:4])
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not UTF-8 at byte {error.start}: expected {FORMS}') from None
    regions = _of_list(text, path)
    if regions is None:
        regions = _of_lines(text, path)
    if not regions:
        raise ValueError(f'{path} has no regions: expected {FORMS}, one per line')
    return regions


def _of_list(text: str, path: Path) -> list[PlacedRegion] | None:
    """The regions of a file that is one JSON list of them; None if it is not."""
    if not text.lstrip().startswith(('[', '{')):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None  # JSON lines, whose errors name a line
    if isinstance(content, dict) and 'annotations' in content:
        raise ValueError(f'{path} has annotations as in COCO: give it with --coco')
    if not isinstance(content, list) or (content and all(map(is_number, content))):
        content = [content]  # a single mark or box
    return [
        PlacedRegion(f'{path}, region {n}', _checked(value, f'{path}, region {n}'))
        for n, value in enumerate(content)
    ]


def _of_lines(text: str, path: Path) -> list[PlacedRegion]:
    regions: list[PlacedRegion] = []
    for number, line in enumerate(text.splitlines(), 1):
        line, where = line.strip(), f'{path}, line {number}'
        if not line or (not regions and re.fullmatch(r'\s*[A-Za-z]\w*\s*(,\s*[A-Za-z]\w*\s*){3}', line)):
            continue  # the names of the columns
        regions.append(PlacedRegion(where, _checked(_of_line(line, where), where)))
    return regions


def _of_line(line: str, where: str) -> Any:
    """A line -> an object, a list, the text of a mark, or a box."""
    if line[0] in '{["':
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f'{where}: not JSON ({one_line(error)}): expected {FORMS}') from None
    if ':' in line:
        return line
    try:
        return [float(part) for part in line.split(',')]
    except ValueError:
        raise ValueError(f'{where}: found {brief(line)}: expected {FORMS}') from None


def _checked(value: Any, where: str) -> Any:
    """The value if it can be a region."""
    if not isinstance(value, (dict, str)) and as_sequence(value) is None:
        raise ValueError(f'{where}: found {brief(value)}: expected {FORMS}')
    try:
        check_values({'region': value})
    except ValueError as error:
        raise ValueError(f'{where}: {error}') from None
    return value
