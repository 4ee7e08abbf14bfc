"""Merges the parts of an evaluation, which independent processes have answered."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vipllava_jax.evaluation.batches import CaseBatches
from vipllava_jax.evaluation.journal import read_journal
from vipllava_jax.messages import listed
from vipllava_jax.row_shards import Shard, shards

SHARD = 'shard'  # the name of the setting that says which part a file holds
SHOWN = 6  # the most parts that a message lists


class Incomplete(ValueError):
    """Not all parts have all their answers yet."""


def part_settings(settings: Mapping[str, Any], shard: Shard) -> dict[str, Any]:
    """The settings in the file of a part."""
    return {**settings, SHARD: str(shard)}


def read_parts(
    batches: CaseBatches, output: Path, count: int, settings: Mapping[str, Any]
) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """The answers in all parts of a file, by number, and the errors of cases whose pictures are damaged.

    `batches` holds the cases of all parts. Raises Incomplete if a part is missing or lacks answers, and
    ValueError if one is damaged, or has other settings.
    """
    cases = batches.cases.cases
    records: dict[int, dict[str, Any]] = {}
    missing = []
    for shard in shards(count):
        path = shard.file(output)
        if not path.exists():
            missing.append(str(shard))
            continue
        part = read_journal(path, part_settings(settings, shard), len(cases))
        if wrong := [n for n in part if not shard.holds(cases[n].key)]:
            raise ValueError(f'{path} is damaged: question {wrong[0]} is not in part {shard}')
        records |= part
    if missing:
        raise Incomplete(_incomplete(missing, count, 'have no file'))
    errors, unanswered = _examine_unanswered(batches, records)
    if unanswered:
        lacking = [str(s) for s in shards(count) if any(s.holds(cases[n].key) for n in unanswered)]
        raise Incomplete(_incomplete(lacking, count, 'lack answers'))
    return records, errors


def _incomplete(parts: list[str], count: int, what: str) -> str:
    return f'{len(parts)} of {count} parts {what}: give --shard {listed(parts, SHOWN)}'


def _examine_unanswered(batches: CaseBatches, records: Mapping[int, Any]) -> tuple[list[str], list[int]]:
    """The cases without an answer: the errors of those with damaged pictures, the numbers of the others."""
    errors: list[str] = []
    unanswered: list[int] = []
    for batch in batches.pending(records):
        for number in batch.numbers:
            if number in records:
                continue
            # pictures are decoded only as long as damaged ones may be the reason for all missing answers
            checks = batches.skip_broken and not unanswered
            if checks and (error := batches.picture_error(number, batch.fit)):
                errors.append(error)
            else:
                unanswered.append(number)
    return errors, unanswered
