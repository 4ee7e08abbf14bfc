"""What requests can ask of a server: the model, its names, and the limits of a request."""

from dataclasses import dataclass

from vipllava_jax.generation.model import Model
from vipllava_jax.inputs.pixels import Fit
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE


@dataclass(frozen=True)
class Limits:
    """The largest requests that are read."""

    body_bytes: int = 32 << 20
    picture_bytes: int = 20 << 20  # of one picture, decoded from base64
    picture_pixels: int = 40_000_000  # of one picture
    pictures: int = 4
    marks: int = 64
    regions: int = 1024  # of one request to /v1/regions
    prompts: int = 64  # of one request to /v1/completions
    answers: int = 16  # to one prompt
    stop_strings: int = 4
    top_logprobs: int = 20


@dataclass(frozen=True)
class Served:
    """A model that is served."""

    name: str  # the id of the model in requests
    model: Model
    created: int  # seconds since 1970
    limits: Limits = Limits()
    max_model_len: int | None = None  # tokens of a prompt and its answer; None: the model's context
    template: str = DEFAULT_TEMPLATE  # of requests that do not name one
    fit: Fit | None = None  # the same; None: that of the checkpoint
