"""/v1/models: the model that is served."""

from typing import Any

from vipllava_jax.messages import brief
from vipllava_jax.protocol.context import context_length
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.served import Served

OWNER = 'vipllava-jax'


def model_list(served: Served) -> dict[str, Any]:
    """All models, of which there is one."""
    return {'object': 'list', 'data': [_entry(served)]}


def model_entry(served: Served, id: str) -> dict[str, Any]:
    """The model with this id; ApiError if there is none."""
    check_model_name(id, served)
    return _entry(served)


def check_model_name(name: str, served: Served) -> None:
    """Raises ApiError for a model that is not served."""
    if name != served.name:
        message = f'there is no model {brief(name)}: ask for {brief(served.name)}'
        raise ApiError(404, message, 'model', 'model_not_found')


def _entry(served: Served) -> dict[str, Any]:
    return {
        'id': served.name,
        'object': 'model',
        'created': served.created,
        'owned_by': OWNER,
        'max_model_len': context_length(served),
    }
