"""The table that describes a run at its start."""

import jax

from vipllava_jax import pods
from vipllava_jax.arrays import flat
from vipllava_jax.data.batches import Batches
from vipllava_jax.mesh_text import mesh_text
from vipllava_jax.model.vipllava import Params
from vipllava_jax.training.prepare import TrainingPlan


def describe_run(plan: TrainingPlan, trainable: Params, frozen: Params, done: int) -> dict[str, str]:
    """The lines of the table by their names: the model, what is trained, the rows, the steps, the output."""
    settings, batches = plan.settings, plan.batches
    trained, fixed = (sum(w.size for _, w in flat(tree)) for tree in (trainable, frozen))
    micro = f' in {settings.accumulate} micro-batches' if settings.accumulate > 1 else ''
    skipped = f', {batches.rows.skipped:,} broken skipped' if batches.rows.skipped else ', none broken'
    lines = {
        'model': f'{settings.model}, {trained + fixed:,} parameters',
        'trains': f'{" and ".join(settings.trains)}: {trained:,} parameters',
        'data': f'{len(batches.rows):,} rows{skipped}{_truncated(batches)}',
        'batches': f'{batches.settings.batch_size} rows per step{micro}, {batches.steps:,} steps per epoch',
        'steps': f'{plan.steps:,}' + (f', of which {done:,} are done' if done else ''),
        'computes': f'in {settings.dtype}, on {_devices(plan)}',
        'output': str(settings.output),
    }
    if plan.held_out:
        rows = f'{len(plan.held_out.rows):,} rows{_truncated(plan.held_out)}'
        lines['held out'] = f'{rows}, evaluated every {settings.eval_every:,} steps'
    return lines


def _devices(plan: TrainingPlan) -> str:
    """The kind of the devices and, of several, how they are used: '4 x NVIDIA H100 (fsdp=4)'."""
    kind = jax.local_devices()[0].device_kind
    if plan.mesh is None:
        return kind
    count = pods.process_count()
    processes = f', {count} processes' if count > 1 else ''
    return f'{plan.mesh.size} x {kind} ({mesh_text(plan.mesh.shape)}{processes})'


def _truncated(batches: Batches) -> str:
    """A phrase with the number of truncated rows; '' if there are none."""
    rows = batches.rows
    if not rows.truncated:
        return ''
    skipped = (
        f', {rows.without_answer:,} of them without an answer and skipped' if rows.without_answer else ''
    )
    return f', {rows.truncated:,} truncated to max_length {batches.settings.max_length:,}{skipped}'
