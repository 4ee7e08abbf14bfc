"""Checks that the processes of a job can meet."""

import re
from collections.abc import Iterator

from vipllava_jax.doctor.check import Check, NoAnswer, Probe, ask, failed, ok, skipped
from vipllava_jax.doctor.hardware import ENVIRONMENT, check_sum

NAME = 'coordinator'
DISTRIBUTED = re.compile(', or --distributed off [a-z ]*|; --distributed off [a-z ]*')
CORRECT = 'correct the option or the variable'
FIREWALL = (
    'start process 0 first, or look at the address and at firewalls (on TPUs jax uses 8482, but clouds '
    'often open only 8476: set JAX_COORDINATOR_PORT)'
)
START_SECONDS = 60  # for Python and jax, and for what explains a failure


def check_coordinator(address: str | None, count: int | None, index: int | None, seconds: float) -> Check:
    """Whether the coordinator of the options, the variables or the cluster can be reached."""
    given = ('' if value is None else str(value) for value in (address, count, index))
    try:
        found = ask(NAME, *given, seconds=seconds)
    except NoAnswer as error:
        return failed(NAME, str(error), 'the network or the name server does not answer')
    if 'error' in found:
        return failed(NAME, *_advised(found['error']))
    if found['place'] is None:
        return skipped(NAME, 'none is configured: this process runs alone')
    where = f'{found["place"]} ({found["by"]}), coordinator {found["address"]}'
    if found['answers']:
        return ok(NAME, f'{where}: answers', **found)
    if found['index'] == 0:
        if not found['problem']:
            return ok(NAME, f'{where}: its port is free for this process', **found)
        return failed(
            NAME, f'{where}: {found["problem"]}', 'another program uses the port: choose another one'
        )
    if not found['known']:
        return failed(
            NAME, f'{where}: this computer does not know the name', 'correct it, or give an IP address'
        )
    return failed(NAME, f'{where}: {found["problem"]}', FIREWALL)


def check_joining(
    address: str | None, count: int | None, index: int | None, seconds: float
) -> Iterator[Check]:
    """Joins the processes of a job, which all run this check, and adds over the devices of all hosts."""
    given = ('' if value is None else str(value) for value in (address, count, index))
    with Probe('join', *given, str(int(seconds)), environment=ENVIRONMENT) as probe:
        try:
            found = probe.answer(seconds + START_SECONDS)  # the process ends sooner, with a better message
            if 'error' in found:
                yield failed('joining', *_advised(found['error']))
                return
            yield ok('joining', found['banner'])
            yield check_sum('sum over hosts', probe.answer(seconds))
            probe.answer(seconds)
        except NoAnswer as error:
            yield failed('joining', str(error), 'run the command on all hosts at the same time')


def _advised(error: str) -> tuple[str, str]:
    """An error of joining, and its advice, without that about --distributed, which `doctor` does not have."""
    error = DISTRIBUTED.sub('', error)
    if advice := re.search(r'(?:, so |: |; )((?:give|a firewall) .*)', error):
        return error[: advice.start()], advice[1]
    return error, CORRECT
