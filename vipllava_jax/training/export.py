"""Exports the result of a run: the whole model in our format, or only the adapter in peft's."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vipllava_jax import checkpoint, pods
from vipllava_jax.arrays import flat, nested
from vipllava_jax.folders import check_no_other_files
from vipllava_jax.loading import Source
from vipllava_jax.model.vipllava import Params
from vipllava_jax.model.weights import LoRA
from vipllava_jax.training import finite, lora, output_folder
from vipllava_jax.training.parts import join
from vipllava_jax.training.prepare import TrainingPlan
from vipllava_jax.training.settings import TrainingSettings
from vipllava_jax.weight_options import WeightOptions


def check_replaceable(target: Path) -> None:
    """Raises CheckpointError if replacing an earlier result would delete files that are not part of it."""
    from vipllava_jax.convert.adapter_config import CONFIG
    from vipllava_jax.convert.adapters import PAIR_FILES

    if target.name == 'adapter':
        check_no_other_files(target, (*PAIR_FILES, CONFIG))
    else:
        checkpoint.check_only_model_files(target)


def export_result(plan: TrainingPlan, trainable: Params, frozen: Params) -> None:
    """Writes the trained weights; the others are copied from the initial model, in its dtypes."""
    target = output_folder.result_folder(plan.settings)
    with pods.together():
        finite.check_result(target, trainable)  # first, because writing takes long
    if target.name == 'adapter':
        from vipllava_jax.convert.adapter_export import save_adapter

        save_adapter(
            target,
            join(trainable, frozen),
            plan.cfg,
            projector='projector' in plan.settings.trains,
            base=plan.settings.model,
            overwrite=True,
        )
    else:
        initial = dataclasses.replace(plan.initial_weights, options=WeightOptions())  # as it is stored
        shapes, leaves = nested(initial.leaf_shapes()), _result_leaves(initial, plan.settings, trainable)
        leaves = finite.check_each(target, leaves)  # again, because casting to float16 may overflow
        checkpoint.save(
            target, shapes, plan.cfg, leaves=leaves, files_from=plan.initial_weights.folder, overwrite=True
        )


def _result_leaves(
    initial: Source, settings: TrainingSettings, trainable: Params
) -> Iterator[tuple[str, Any]]:
    """The leaves of the initial model, replaced by or merged with the trained ones."""
    trained = dict(flat(trainable))
    for path, leaf in initial.leaves():
        if path in trained:
            leaf = trained[path].astype(leaf.dtype)
        elif f'{path}/a' in trained:
            scale = settings.lora_alpha / settings.lora_rank
            pair = LoRA(leaf, trained[f'{path}/a'], trained[f'{path}/b'], scale)
            leaf = lora.merge({'w': pair})['w']
        yield path, leaf
