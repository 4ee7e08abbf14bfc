"""Recognizes checkpoints that other tools have quantized, which are not supported."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vipllava_jax.messages import CheckpointError, brief, printable

ADVICE = 'use the original weights with --quantize int8'
FIELDS = ('quantization_config', 'compression_config')
# The tensors that a tool stores in addition to or instead of a weight, by the last part of their names.
SIGNS = (
    ('bitsandbytes', r'quant_state\.bitsandbytes__\w+|absmax|quant_map|nested_absmax|nested_quant_map'),
    ('bitsandbytes', r'SCB|weight_format'),
    ('GPTQ or AWQ', r'qweight|qzeros|scales|g_idx'),
    ('fp8', r'weight_scale_inv|activation_scale'),
    ('compressed-tensors', r'weight_packed|weight_shape|weight_zero_point|weight_g_idx'),
    ('compressed-tensors or fp8', r'weight_scale|weight_scale_2|input_scale|output_scale|[kv]_scale'),
    ('HQQ', r'W_q|quant_scale|quant_zero'),
    ('quanto', r'weight\._(data|scale|shift)'),
    ('torchao', r'(weight[.:]+)?_?(weight_)?(qdata|tensor_impl)[\w.]*|_weight_(scale|zero_point)'),
    ('AQLM, VPTQ or SpQR', r'codes|codebooks|centroids|indices|dense_weights'),
)
PARTS = 5  # the last parts of a name that are searched
PATTERN = re.compile('|'.join(rf'(?P<k{i}>.*\.({sign}))' for i, (_, sign) in enumerate(SIGNS)))


def refuse_by_config(config: Mapping[str, Any], folder: Path) -> None:
    """Raises CheckpointError if the content of a folder's config.json says that the weights are quantized."""
    parts = [config, *(config.get(name) for name in ('text_config', 'vision_config'))]
    for part in (part for part in parts if isinstance(part, Mapping)):
        for name in FIELDS:
            if tool := _tool(part.get(name)):
                raise CheckpointError(f'{folder}: quantized by {tool} (config.json): {ADVICE}')


def _tool(config: Any) -> str | None:
    """The tool that quantized the weights, from a quantization_config; None if they are not quantized."""
    if not config:
        return None
    if not isinstance(config, Mapping):
        return brief(config)
    loads = [name for name in config if name.startswith('load_in_')]
    if loads and not any(config[name] for name in loads):
        return None
    method = config.get('quant_method') or config.get('quant_algo')
    if isinstance(method, str):
        return printable(method, 40)
    return 'bitsandbytes' if loads else 'an unnamed method'


def refuse_by_names(names: Iterable[str], where: str) -> None:
    """Raises CheckpointError if tensors have names that a quantization tool uses."""
    for name in names:
        if match := PATTERN.fullmatch('.'.join(name.split('.')[-PARTS:])):
            tool = next(SIGNS[i][0] for i in range(len(SIGNS)) if match[f'k{i}'])
            raise CheckpointError(f'{where}: quantized by {tool} (it holds {printable(name, 120)}): {ADVICE}')
