"""What requests consist of: messages with their parts, marks, regions, and formats of answers."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from vipllava_jax.inputs.pixels import Fit

Role = Literal['system', 'developer', 'user', 'assistant']
FIELDS_OF_MARKS = {
    'shape': {'type': 'string'},
    'box': {'type': 'array', 'items': {'type': 'number'}, 'minItems': 4, 'maxItems': 4},
    'point': {'type': 'array', 'items': {'type': 'number'}, 'minItems': 2, 'maxItems': 2},
    'polygon': {'type': 'array'},
    'color': {},
    'alpha': {'type': 'integer', 'minimum': 1, 'maximum': 255},
    'width': {'type': 'number', 'exclusiveMinimum': 0},
    'units': {'enum': ['pixels', 'fractions']},
}
MarkData = Annotated[
    str | dict[str, Any],
    Meta(
        description='a mark as text, such as "rectangle:40,60,180,220:red", or as an object with its fields',
        extra_json_schema={'properties': FIELDS_OF_MARKS},
    ),
]
RegionData = Annotated[
    str | list[float] | dict[str, Any],
    Meta(description='a box [x1, y1, x2, y2], a mark as text or as an object, or an annotation as in COCO'),
]


class TextPart(Struct, tag_field='type', tag='text'):
    """A text in a message."""

    text: str


class ImageUrl(Struct):
    """Where a picture is."""

    url: Annotated[str, Meta(description='a data URI in base64, or a URL of a host that the server allows')]


class ImagePart(Struct, tag_field='type', tag='image_url'):
    """A picture in a message, the marks that are drawn on it, and how it is made square."""

    image_url: ImageUrl
    visual_prompts: list[MarkData] | None = None
    fit: Fit | None = None


class Message(Struct):
    """One message of a conversation."""

    role: Role
    content: str | Annotated[list[TextPart | ImagePart], Meta(min_length=1)]

    def pictures(self) -> Iterator[tuple[int, ImagePart]]:
        """The pictures of the message, with their positions in its content."""
        if isinstance(self.content, str):  # whose characters, of which there may be millions, are no parts
            return
        yield from ((p, part) for p, part in enumerate(self.content) if isinstance(part, ImagePart))


class StreamOptions(Struct):
    """What is streamed besides the answer."""

    include_usage: bool | None = None


class JsonSchema(Struct):
    """A schema, with the name that OpenAI asks for."""

    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None  # an answer always follows the schema


class TextFormat(Struct, tag_field='type', tag='text'):
    """Any text."""


class JsonObjectFormat(Struct, tag_field='type', tag='json_object'):
    """A JSON object."""


class JsonSchemaFormat(Struct, tag_field='type', tag='json_schema'):
    """JSON that a schema describes."""

    json_schema: JsonSchema


class StructuredOutputs(Struct):
    """The format of an answer, as vLLM names it; one of the fields is given."""

    choice: Annotated[list[str], Meta(min_length=1)] | None = None
    regex: str | None = None
    json: str | dict[str, Any] | None = None
