"""Checks that the processes of a job can meet."""

from collections.abc import Iterator

from vipllava_jax.doctor.check import Check, NoAnswer, Probe, ask, failed, ok, skipped
from vipllava_jax.doctor.hardware import ENVIRONMENT, check_sum

NAME = 'coordinator'


def check_coordinator(address: str | None, count: int | None, index: int | None, seconds: float) -> Check:
    """Whether the coordinator of the options, the variables or the cluster can be reached."""
    given = ('' if value is None else str(value) for value in (address, count, index))
    try:
        found = ask(NAME, *given, seconds=seconds)
    except NoAnswer as error:
        return failed(NAME, str(error), 'the network or the name server does not answer')
    if 'error' in found:
        return failed(NAME, found['error'], 'correct the option or the variable')
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
    advice = (
        'start process 0 first, or look at the address and at firewalls (jax takes port 8482 on TPUs, clouds '
        'often open 8476 only: set JAX_COORDINATOR_PORT)'
    )
    return failed(NAME, f'{where}: {found["problem"]}', advice)


def check_joining(
    address: str | None, count: int | None, index: int | None, seconds: float
) -> Iterator[Check]:
    """Joins the processes of a job, which all run this check, and adds over the devices of all hosts."""
    given = ('' if value is None else str(value) for value in (address, count, index))
    with Probe('join', *given, str(int(seconds)), environment=ENVIRONMENT) as probe:
        try:
            found = probe.answer(2 * seconds)  # the process itself ends sooner, with a better message
            if 'error' in found:
                yield failed('joining', found['error'], 'correct the option or the variable')
                return
            yield ok('joining', found['banner'])
            yield check_sum('sum over hosts', probe.answer(seconds))
            probe.answer(seconds)
        except NoAnswer as error:
            yield failed('joining', str(error), 'run the command on all hosts at the same time')
