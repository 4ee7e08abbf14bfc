"""Rows in the dialect of OpenAI's batches, each of which is a request to an endpoint."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vipllava_jax.batch_files.lines import REQUEST_ID
from vipllava_jax.batch_files.pictures import picture_path
from vipllava_jax.batch_files.row_settings import seed_of_row
from vipllava_jax.engine.question import QuestionError
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.data_uris import is_data_uri
from vipllava_jax.messages import brief, listed, printable
from vipllava_jax.protocol.endpoints import ENDPOINTS
from vipllava_jax.protocol.errors import NO_PARAMS, ApiError, api_error
from vipllava_jax.protocol.exchange import Exchange
from vipllava_jax.protocol.requests import picture_urls, request_from_fields
from vipllava_jax.protocol.served import Served

if TYPE_CHECKING:
    from vipllava_jax.engine.reply import Reply

FIELDS = (REQUEST_ID, 'method', 'url', 'body')
BROKEN = 'invalid_row'  # the code of a row that is no request


@dataclass(frozen=True)
class RequestLines:
    """Lines such as {"id", "custom_id", "response", "error"}.

    A request that is refused has a response with its status; what is no request has an error.
    """

    id: str  # of the row
    exchange: Exchange | None = None  # None: the row is no request

    def answers(self, replies: Sequence['Reply']) -> dict[str, Any]:
        assert self.exchange is not None
        return self._line(200, self.exchange.body(replies))

    def error(self, error: Exception) -> dict[str, Any]:
        if isinstance(error, ApiError | QuestionError):
            refused = api_error(error, self.exchange.params if self.exchange else NO_PARAMS)
            return self._line(refused.status, refused.body())
        fault = {'code': BROKEN, 'message': printable(str(error))}
        return {**self._head, 'response': None, 'error': fault}

    def _line(self, status: int, body: dict[str, Any]) -> dict[str, Any]:
        response = {'status_code': status, 'request_id': request_id(self.id), 'body': body}
        return {**self._head, 'response': response, 'error': None}

    @property
    def _head(self) -> dict[str, Any]:
        return {'id': f'batch_req_{request_id(self.id)}', REQUEST_ID: self.id}


def read_request_row(fields: Mapping[str, Any], id: str, served: Served, folder: Path | None) -> Exchange:
    """The request in a row with this id; paths of pictures are relative to the folder, if there is one.

    The model that is `served` answers requests whatever model they name. Raises ValueError for a row that is
    no request, and ApiError for an invalid request.
    """
    for name in fields:
        if name not in FIELDS:
            raise ValueError(f'unknown field {brief(name)}: a row has {", ".join(FIELDS)}')
    url, body = fields.get('url'), fields.get('body')
    if fields.get('method') != 'POST':
        raise ValueError(f'"method" is {brief(fields.get("method"))}, expected "POST"')
    if not isinstance(url, str) or url not in ENDPOINTS:
        raise ValueError(f'"url" is {brief(url)}: choose {listed([*ENDPOINTS], 9)}')
    if not isinstance(body, dict):
        raise ValueError(f'"body" is {brief(body)}, expected an object')
    endpoint = ENDPOINTS[url]
    request, _ = request_from_fields(body, endpoint.request)
    if request.stream:
        raise ApiError(400, 'stream is true, but a batch is not streamed: leave it out', 'stream')
    served = dataclasses.replace(served, name=request.model, model=_seeded(served.model, id))
    return endpoint.exchange(request, served, request_id(id), _paths(picture_urls(request), folder))


def request_id(id: str) -> str:
    """The id of the request in a row, which is the same in every run."""
    return blake2b(id.encode('utf-8', 'surrogatepass'), digest_size=12).hexdigest()


def _seeded(model: Any, id: str) -> Any:
    """The model with the seed of a row, which depends on that of the batch and the row's id alone."""
    settings: GenerationSettings = model.settings
    if settings.seed is None:
        return model
    return model._replace(settings=dataclasses.replace(settings, seed=seed_of_row(settings.seed, id)))


def _paths(urls: Any, folder: Path | None) -> dict[str, Any]:
    """The path of each picture that is not in a data URI."""
    try:
        return {url: picture_path(url, folder, 'a picture') for url in urls if not is_data_uri(url)}
    except ValueError as error:
        raise ApiError(400, str(error)) from None
