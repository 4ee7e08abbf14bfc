"""The OpenAPI document of the server, generated from the requests."""

from typing import Any

import msgspec

from vipllava_jax.protocol.endpoints import ENDPOINTS
from vipllava_jax.protocol.requests import PreviewRequest, TokenizeRequest
from vipllava_jax.protocol.served import Served
from vipllava_jax.version import __version__

Schema = dict[str, Any]
ERRORS = {
    '400': 'The request is invalid: `param` names the field.',
    '401': 'The API key is missing or wrong.',
    '403': 'The server has no keys, and the Host header names another computer.',
    '404': 'There is no such model or path.',
    '408': 'The body did not arrive in time.',
    '413': 'The body, or a picture in it, is too large.',
    '415': 'The body is not application/json.',
    '429': 'Too many requests wait: send it again after `Retry-After` seconds.',
    '500': 'The server has failed.',
    '503': 'The server is starting, draining or has failed.',
}
OF_GET = ('401', '403', '404', '500')
SUMMARIES = {
    '/v1/chat/completions': 'Answers the messages of a chat, with pictures and marks on them.',
    '/v1/completions': 'Continues texts.',
    '/v1/regions': 'Answers one question about each region of a picture.',
    '/v1/preview': 'What the model would see of a picture with marks.',
    '/tokenize': 'The ids of a text, or of the prompt that messages become.',
}


def openapi(served: Served) -> dict[str, Any]:
    """The document, version 3.1, of all paths of the server."""
    others = {'/v1/preview': PreviewRequest, '/tokenize': TokenizeRequest}
    kinds = {path: endpoint.request for path, endpoint in ENDPOINTS.items()} | others
    references, schemas = msgspec.json.schema_components(
        kinds.values(), ref_template='#/components/schemas/{name}'
    )
    posts = {
        path: {'post': _post(path, reference)} for path, reference in zip(kinds, references, strict=True)
    }
    return {
        'openapi': '3.1.0',
        'info': {'title': 'vipllava-jax', 'version': __version__, 'description': _description(served)},
        'paths': {**posts, **_gets()},
        'components': {
            'schemas': {**schemas, **_response_schemas()},
            'securitySchemes': {'key': {'type': 'http', 'scheme': 'bearer'}},
        },
        'security': [{}, {'key': []}],
    }


def _description(served: Served) -> str:
    limits = served.limits
    return (
        f'Serves the model {served.name}. A request has at most {limits.pictures} pictures, each of '
        f'{limits.picture_bytes >> 20} MiB and {limits.picture_pixels / 1e6:g} million pixels, and '
        f'{limits.marks} marks.'
    )


def _post(path: str, reference: Schema) -> Schema:
    """A path that takes a request; those of the endpoints stream if the request asks for it."""
    name = _name(path)
    content = {'application/json': {'schema': _ref(name)}}
    if path in ENDPOINTS:
        content['text/event-stream'] = {'schema': {'type': 'string'}}
    return {
        'operationId': name,
        'summary': SUMMARIES[path],
        'requestBody': {'required': True, 'content': {'application/json': {'schema': reference}}},
        'responses': {'200': {'description': 'The answer.', 'content': content}, **_errors(*ERRORS)},
    }


def _gets() -> Schema:
    """The paths without a request."""
    id = {'name': 'id', 'in': 'path', 'required': True, 'schema': {'type': 'string'}}
    return {
        '/v1/models': {'get': _get('models', 'The models.', 'application/json', 'Models')},
        '/v1/models/{id}': {
            'get': _get('model', 'One model.', 'application/json', 'Model') | {'parameters': [id]}
        },
        '/health': {'get': _get('health', 'Whether the server works.', 'application/json', None, '503')},
        '/ready': {'get': _get('ready', 'Whether it takes requests.', 'application/json', None, '503')},
        '/version': {'get': _get('version', 'The versions of the software.', 'application/json')},
        '/metrics': {'get': _get('metrics', 'Counts and times for Prometheus.', 'text/plain')},
        '/openapi.json': {'get': _get('openapi', 'This document.', 'application/json')},
        '/': {'get': _get('page', 'A page about the server.', 'text/html')},
    }


def _get(name: str, summary: str, media: str, schema: str | None = None, *others: str) -> Schema:
    """A path without a request, and its errors; `others` are statuses whose bodies are not errors."""
    plain: Schema = {'type': 'object'} if media == 'application/json' else {'type': 'string'}
    content = {media: {'schema': _ref(schema) if schema else plain}}
    responses = {status: {'description': summary, 'content': content} for status in ('200', *others)}
    return {'operationId': name, 'summary': summary, 'responses': responses | _errors(*OF_GET)}


def _errors(*statuses: str) -> Schema:
    content = {'application/json': {'schema': _ref('Error')}}
    return {status: {'description': ERRORS[status], 'content': content} for status in statuses}


def _ref(name: str) -> Schema:
    return {'$ref': f'#/components/schemas/{name}'}


def _name(path: str) -> str:
    """'/v1/chat/completions' -> 'ChatCompletions'."""
    return ''.join(word.title() for word in path.removeprefix('/v1').split('/'))


def _object(**properties: Any) -> Schema:
    """An object that has all of these properties, and may have others."""
    return {'type': 'object', 'properties': properties, 'required': [*properties]}


def _response_schemas() -> dict[str, Schema]:
    text, number = {'type': 'string'}, {'type': 'integer'}
    text_or_null = {'type': ['string', 'null']}
    reason = {'enum': ['stop', 'length']}
    head = {'id': text, 'created': number, 'model': text}
    usage = _object(prompt_tokens=number, completion_tokens=number, total_tokens=number)
    message = _object(role={'const': 'assistant'}, content=text)
    choice = _object(index=number, message=message, finish_reason=reason)
    continued = _object(index=number, text=text, finish_reason=reason)
    answer = _object(index=number, answer=text, finish_reason=reason)
    error = _object(message=text, type=text, param=text_or_null, code=text_or_null)
    model = _object(id=text, object={'const': 'model'}, created=number, owned_by=text, max_model_len=number)

    def several(items: Schema) -> Schema:
        return {'type': 'array', 'items': items}

    return {
        'ChatCompletions': _object(
            **head, object={'const': 'chat.completion'}, choices=several(choice), usage=usage
        ),
        'Completions': _object(
            **head, object={'const': 'text_completion'}, choices=several(continued), usage=usage
        ),
        'Regions': _object(**head, object={'const': 'regions'}, data=several(answer), usage=usage),
        'Preview': _object(image=text, warnings=several(text)),
        'Tokenize': _object(count=number, max_model_len=number, tokens=several(number)),
        'Model': model,
        'Models': _object(object={'const': 'list'}, data=several(_ref('Model'))),
        'Error': _object(error=error),
    }
