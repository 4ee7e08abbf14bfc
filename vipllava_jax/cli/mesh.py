"""The options for a mesh: how the devices divide the weights and the batch, and their memory."""

from typing import Any

import click

from vipllava_jax.device_kinds import parse_memory
from vipllava_jax.mesh_text import parse_mesh


class MeshText(click.ParamType):
    """The axes of a mesh by name, or 'auto', as in `tensor=4,data=2`."""

    name = 'mesh'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return parse_mesh(value)
        except ValueError as error:
            self.fail(str(error).removeprefix('mesh: '), param, ctx)


class MemorySize(click.ParamType):
    """The memory of a device in bytes, given as a size or as the kind of the device."""

    name = 'memory'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return parse_memory(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


mesh_option = click.option(
    '--mesh',
    metavar='tensor=N,data=N|auto',
    type=MeshText(),
    help='Use several devices: tensor divides the weights, for a model that does not fit on one; data '
    'divides the batch, for throughput; auto chooses by the memory of the devices.  [default: one device]',
)
