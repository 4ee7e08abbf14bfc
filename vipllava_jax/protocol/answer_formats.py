"""The format that a request asks for, under the names of OpenAI and vLLM."""

from typing import Any

from vipllava_jax.engine.answer_format import MAX_SCHEMA, AnswerFormat
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.parts import JsonObjectFormat, JsonSchemaFormat, StructuredOutputs
from vipllava_jax.protocol.reading import parse_object
from vipllava_jax.protocol.requests import GenerationRequest


def answer_format(request: GenerationRequest) -> AnswerFormat | None:
    """The format of the answers to a request; None: any text. ApiError if it asks for two."""
    found = _given(request)
    if len(found) > 1:
        names = ', '.join(found)
        raise ApiError(400, f'there are several formats for the answer, {names}: give one', [*found][1])
    return next(iter(found.values()), None)


def format_field(request: GenerationRequest) -> str:
    """The field of a request that has the format; 'response_format' if it has none."""
    return next(iter(_given(request)), 'response_format')


def _given(request: GenerationRequest) -> dict[str, AnswerFormat]:
    """The formats in a request by the fields that they are in."""
    return dict([*_of_openai(request), *_of_vllm(request.structured_outputs or StructuredOutputs())])


def _of_openai(request: GenerationRequest) -> list[tuple[str, AnswerFormat]]:
    match request.response_format:
        case JsonObjectFormat():
            return [('response_format', AnswerFormat('json_object'))]
        case JsonSchemaFormat(json_schema=described):
            return [('response_format', AnswerFormat('json_schema', described.schema))]
    return []


def _of_vllm(asked: StructuredOutputs) -> list[tuple[str, AnswerFormat]]:
    found = []
    if asked.choice is not None:
        found.append(('structured_outputs.choice', AnswerFormat('choice', tuple(asked.choice))))
    if asked.regex is not None:
        found.append(('structured_outputs.regex', AnswerFormat('regex', asked.regex)))
    if asked.json is not None:
        found.append(('structured_outputs.json', AnswerFormat('json_schema', _schema(asked.json))))
    return found


def _schema(schema: str | dict[str, Any]) -> dict[str, Any]:
    """A schema, which may be written as the text of its JSON."""
    if isinstance(schema, dict):
        return schema
    name = 'structured_outputs.json'
    if len(schema) > MAX_SCHEMA:
        message = f'{name} has {len(schema)} characters, expected at most {MAX_SCHEMA}: shorten it'
        raise ApiError(400, message, name)
    try:
        return parse_object(schema.encode())
    except ApiError as error:
        raise ApiError(400, f'{name}: {error.message.replace("the body", "it", 1)}', name) from None
