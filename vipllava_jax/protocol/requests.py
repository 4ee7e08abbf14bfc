"""The requests of all endpoints: their fields as OpenAI and vLLM name them, and those of our own."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from msgspec import Meta, Struct

from vipllava_jax.answering.region_marks import MODES, Mode
from vipllava_jax.inputs.pixels import FITS, Fit
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.parts import (
    JsonObjectFormat,
    JsonSchemaFormat,
    MarkData,
    Message,
    RegionData,
    Role,
    StreamOptions,
    StructuredOutputs,
    TextFormat,
)
from vipllava_jax.protocol.reading import parse_object, shown, to_struct

T = TypeVar('T', bound='Request')
REMOTE = ('http://', 'https://')
CHOICES = {
    'role': get_args(Role),
    'content.type': ('text', 'image_url'),
    'response_format.type': ('text', 'json_object', 'json_schema'),
    'fit': FITS,
    'mode': MODES,
}  # what fields may be, by the end of their paths
MAX_STOP, MAX_WORD = 256, 64  # characters of a stop string, and of a word that is never written
MAX_BIASES, MAX_WORDS, MAX_STOP_IDS = 256, 64, 64

NO_BEAMS = 'the server does not search beams: ask for several answers with n, or use vipllava ask --num-beams'
NO_TOOLS = 'the model was not trained to call tools'
NO_AUDIO = 'the model neither hears nor speaks'
# What a field may hold although the server does not have it, besides null and empty values, and advice.
Refused = dict[str, tuple[tuple[Any, ...], str]]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Tokens = Annotated[int, Meta(ge=1)]
Id = Annotated[int, Meta(ge=0)]
StopString = Annotated[str, Meta(min_length=1, max_length=MAX_STOP)]


class Request(Struct, kw_only=True):
    """What all requests have in common."""

    refused: ClassVar[Refused] = {}


class GenerationRequest(Request, kw_only=True):
    """The model, and how answers are generated; what is absent or null is as in the model's settings."""

    model: str
    max_completion_tokens: Tokens | None = None
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    stop: StopString | list[StopString] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MAX_BIASES)] | None
    ) = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    stop_token_ids: Annotated[list[Id], Meta(max_length=MAX_STOP_IDS)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    bad_words: (
        Annotated[list[Annotated[str, Meta(min_length=1, max_length=MAX_WORD)]], Meta(max_length=MAX_WORDS)]
        | None
    ) = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    refused: ClassVar[Refused] = {
        'use_beam_search': ((), NO_BEAMS),
        'best_of': ((1,), NO_BEAMS),
        'adapter': ((), 'the server has the adapter with which it was started'),
    }


class ChatRequest(GenerationRequest, kw_only=True):
    """A request to /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    n: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0)] | None = None
    template: str | None = None
    return_image: bool | None = None

    refused: ClassVar[Refused] = GenerationRequest.refused | {
        'tools': ((), NO_TOOLS),
        'functions': ((), NO_TOOLS),
        'tool_choice': (('none', 'auto'), NO_TOOLS),
        'function_call': (('none', 'auto'), NO_TOOLS),
        'audio': ((), NO_AUDIO),
        'modalities': ((['text'],), NO_AUDIO),
        'web_search_options': ((), 'the server does not search the web'),
    }


class CompletionRequest(GenerationRequest, kw_only=True):
    """A request to /v1/completions, which has no pictures and no template."""

    prompt: str | Annotated[list[str], Meta(min_length=1)]
    n: Annotated[int, Meta(ge=1)] | None = None
    logprobs: Annotated[int, Meta(ge=0)] | None = None

    refused: ClassVar[Refused] = GenerationRequest.refused | {
        'echo': ((), 'the prompt is not repeated: put it before the answer yourself'),
        'suffix': ((), 'the model was not trained to fill a gap'),
    }


class RegionsRequest(GenerationRequest, kw_only=True):
    """A request to /v1/regions: one question about each region of a picture."""

    image: Annotated[str, Meta(description='a data URI in base64, or a URL of a host that is allowed')]
    regions: Annotated[list[RegionData], Meta(min_length=1)]
    question: Annotated[str, Meta(description='holds {mark}, which becomes the phrase of a region')]
    mode: Mode | None = None
    shape: str | None = None
    template: str | None = None
    fit: Fit | None = None

    refused: ClassVar[Refused] = GenerationRequest.refused | {
        'n': ((1,), 'there is one answer to each region'),
        'logprobs': ((), 'answers about regions come without log-probabilities'),
    }


class PreviewRequest(Request, kw_only=True):
    """A request to /v1/preview: a picture, the marks to draw on it, and how it is made square."""

    image: Annotated[str, Meta(description='a data URI in base64')]
    visual_prompts: list[MarkData] | None = None
    fit: Fit | None = None


class TokenizeRequest(Request, kw_only=True):
    """A request to /tokenize: a prompt, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    template: str | None = None


def read_request(data: bytes, kind: type[T]) -> tuple[T, tuple[str, ...]]:
    """The body of a request, and the names of its fields that have no effect.

    Raises ApiError, whose `param` is the path of a field, for everything that is invalid.
    """
    return request_from_fields(parse_object(data), kind)


def request_from_fields(fields: dict[str, Any], kind: type[T]) -> tuple[T, tuple[str, ...]]:
    """The same from the fields of a request, which are valid JSON."""
    for name, (harmless, advice) in kind.refused.items():
        value = fields.get(name)
        if value and value not in harmless:
            raise ApiError(400, f'{name} is {shown(value)}, but {advice}: leave it out', name)
    return to_struct(fields, kind, CHOICES)


def picture_urls(request: Request) -> Iterator[str]:
    """The URLs of the pictures in a request, data URIs among them, in order."""
    if isinstance(request, RegionsRequest):
        yield request.image
    elif isinstance(request, ChatRequest | TokenizeRequest):
        for message in request.messages or ():
            yield from (part.image_url.url for _, part in message.pictures())


def remote_urls(request: Request) -> tuple[str, ...]:
    """The http(s) URLs of the pictures in a request, in order, without repetition."""
    return tuple(dict.fromkeys(url for url in picture_urls(request) if url[:8].lower().startswith(REMOTE)))
