"""The options of `vipllava bench --what engine`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import click

from vipllava_jax.cli.lists import Names, Numbers
from vipllava_jax.cli.numbers import WholeNumber

if TYPE_CHECKING:
    from vipllava_jax.benchmark.engine_run import EngineRun
    from vipllava_jax.benchmark.subject import Subject
    from vipllava_jax.config import Config

PARTS = ('saturation', 'one-picture', 'mixed', 'lone', 'arrivals')
PERCENTS = (25, 50, 75, 100)
OPTIONS = (
    click.option(
        '--engine-parts',
        metavar='A,B,…',
        type=Names(PARTS),
        help=f'engine: only some of {", ".join(PARTS)}; arrivals measure saturation, too.  [default: all]',
    ),
    click.option(
        '--engine-requests',
        metavar='N',
        type=WholeNumber(1, 100_000),
        help='engine: the number of requests per repeat.  [default: 256; 32 on a CPU]',
    ),
    click.option(
        '--engine-percents',
        metavar='N,…',
        type=Numbers(),
        default=PERCENTS,
        help='engine: the rates of arrivals, in percent of saturation.  [default: 25,50,75,100]',
    ),
    click.option(
        '--engine-rows',
        metavar='N',
        type=WholeNumber(1, 4096),
        help='engine: its rows.  [default: as many as fit in memory]',
    ),
    click.option(
        '--engine-slots',
        metavar='N',
        type=WholeNumber(1, 1 << 20),
        help='engine: the slots of a row, for the tokens of a prompt and its answer.  [default: 1024]',
    ),
    click.option(
        '--engine-long-rows',
        metavar='N',
        type=WholeNumber(0, 4096),
        help='engine: its rows with slots for the whole context.  [default: a few]',
    ),
    click.option(
        '--engine-exact',
        is_flag=True,
        help='engine: answers in bfloat16 that do not depend on other requests.',
    ),
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of the engine to a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class EngineOptions:
    """The options of the engine's benchmark; None where the default depends on the device."""

    engine_parts: tuple[str, ...] | None
    engine_requests: int | None
    engine_percents: tuple[int, ...]
    engine_rows: int | None
    engine_slots: int | None
    engine_long_rows: int | None
    engine_exact: bool

    @classmethod
    def split(cls, options: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """These options, and the other ones."""
        names = {field.name for field in fields(cls)}
        own = {name: options[name] for name in names}
        return cls(**own), {name: value for name, value in options.items() if name not in names}

    @property
    def parts(self) -> tuple[str, ...]:
        return self.engine_parts or PARTS

    def check(self, cfg: 'Config') -> None:
        """Raises ValueError if the requests do not fit the model, before its weights are loaded."""
        from vipllava_jax.benchmark import engine_parts

        engine_parts.check_lengths(cfg, self.parts)

    def plan(self, subject: 'Subject') -> 'EngineRun':
        """What to measure with this model."""
        from vipllava_jax.benchmark import engine_run
        from vipllava_jax.benchmark.run import default

        return engine_run.plan(
            subject,
            self.parts,
            self.engine_requests or default('requests'),
            self.engine_percents,
            rows=self.engine_rows,
            slots=self.engine_slots,
            long_rows=self.engine_long_rows,
            exact=self.engine_exact or None,
        )
