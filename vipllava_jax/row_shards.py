"""Divides rows among independent processes by a hash of their ids; each process writes a file of its own."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vipllava_jax.messages import brief

MAX_SHARDS = 1 << 16
AUTO = 'auto'
INDICES = {  # the variables with the index of a process -> those with the number of processes
    'JOB_COMPLETION_INDEX': None,  # Kubernetes sets no variable with the number
    'SKYPILOT_NODE_RANK': 'SKYPILOT_NUM_NODES',
    'SLURM_ARRAY_TASK_ID': 'SLURM_ARRAY_TASK_COUNT',
}


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of the rows."""

    index: int
    count: int

    def __str__(self) -> str:
        return f'{self.index}/{self.count}'

    def holds(self, id: str) -> bool:
        """Whether the row with this id is in the part; does not depend on the version or the computer."""
        digest = hashlib.blake2b(id.encode('utf-8', 'surrogatepass'), digest_size=8).digest()
        return int.from_bytes(digest, 'big') % self.count == self.index

    def file(self, path: Path) -> Path:
        """The file of the part: 'out.jsonl' -> 'out.2-of-4.jsonl'."""
        return path.with_name(f'{path.stem}.{self.index}-of-{self.count}{path.suffix}')


def shards(count: int) -> list[Shard]:
    """All parts of rows divided among `count` processes."""
    return [Shard(index, count) for index in range(count)]


def parse_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """'2/4', 'auto' or 'auto/4' -> the part of this process; 'auto' reads the variables of INDICES.

    Raises ValueError for anything else, and for variables that are missing, wrong or ambiguous.
    """
    name, slash, number = text.partition('/')
    if name == AUTO:
        return _from_variables(_number('--shard', number, 1, MAX_SHARDS) if slash else None, environment)
    if not slash:
        raise ValueError(f'--shard {brief(text)}: expected I/N, as in 0/4, {AUTO}, or {AUTO}/N')
    count = _number('--shard', number, 1, MAX_SHARDS)
    return Shard(_number('--shard', name, 0, count - 1), count)


def _number(label: str, text: str, low: int, high: int) -> int:
    """A whole number from untrusted text."""
    if not re.fullmatch('[0-9]{1,9}', text) or not low <= int(text) <= high:
        raise ValueError(f'{label}: {brief(text)}, expected a whole number from {low} to {high}')
    return int(text)


def _from_variables(count: int | None, environment: Mapping[str, str]) -> Shard:
    """The part of this process by the variables of the scheduler; a given count takes precedence."""
    found = [name for name in INDICES if name in environment]
    if len(found) != 1:
        several = f'{" and ".join(found)} are all set' if found else f'none of {", ".join(INDICES)} is set'
        raise ValueError(f'--shard {AUTO}: {several}: give I/N')
    (name,) = found
    of = INDICES[name]
    if count is None:
        if of is None or of not in environment:
            raise ValueError(f'--shard {AUTO}: {name} is set, but the number of parts is not: give {AUTO}/N')
        count = _number(of, environment[of], 1, MAX_SHARDS)
        first = _number('SLURM_ARRAY_TASK_MIN', environment.get('SLURM_ARRAY_TASK_MIN', '0'), 0, 1 << 29)
        if of == 'SLURM_ARRAY_TASK_COUNT' and first:
            raise ValueError(
                f'--shard {AUTO}: the tasks of the array begin at {first}: submit all with '
                f'--array=0-{count - 1}, or some of them again with {AUTO}/N'
            )
    return Shard(_number(name, environment[name], 0, count - 1), count)


def existing_parts(path: Path) -> Iterator[tuple[Shard, Path]]:
    """The files next to `path` that are named as parts of it."""
    pattern = re.compile(rf'{re.escape(path.stem)}\.([0-9]{{1,9}})-of-([0-9]{{1,9}}){re.escape(path.suffix)}')
    names = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
    for found in filter(None, map(pattern.fullmatch, names)):
        yield Shard(int(found[1]), int(found[2])), path.with_name(found[0])


def check_parts(path: Path, count: int) -> None:
    """Raises ValueError if there are parts of `path` for another number of processes."""
    for shard, part in existing_parts(path):
        if shard.count != count:
            raise ValueError(
                f'{part} holds one of {shard.count} parts, but now there are {count}, with other rows: give '
                f'--shard I/{shard.count} or --merge {shard.count}, or another --output'
            )
