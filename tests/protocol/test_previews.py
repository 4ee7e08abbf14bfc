"""A request for a preview becomes a question without words; its limits are those of other requests."""

import base64
import io

import pytest
from PIL import Image

from vipllava_jax.inputs.marks import Mark
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.previews import preview_question
from vipllava_jax.protocol.requests import PreviewRequest
from vipllava_jax.protocol.served import Limits, Served

FILE = io.BytesIO()
Image.new('RGB', (40, 30)).save(FILE, 'PNG')
URI = f'data:image/png;base64,{base64.b64encode(FILE.getvalue()).decode()}'
SERVED = Served('tiny', None, 0, Limits(marks=2, picture_bytes=1000), fit='pad')


def test_the_picture_the_marks_and_the_fit_are_those_of_the_request():
    request = PreviewRequest(
        image=URI, visual_prompts=['point:4,5:red', {'shape': 'mask', 'box': [1, 2, 9, 8]}]
    )
    question = preview_question(request, SERVED)
    assert question.images == (FILE.getvalue(),)
    assert question.marks == (Mark('point', point=(4, 5)), Mark('mask', box=(1, 2, 9, 8)))
    assert question.fit == 'pad'
    assert preview_question(PreviewRequest(image=URI, fit='crop'), SERVED).fit == 'crop'


@pytest.mark.parametrize(
    ('fields', 'status', 'param'),
    [
        ({'visual_prompts': ['point:4,5:red'] * 3}, 400, 'visual_prompts'),
        ({'image': f'{URI[:22]}{"A" * 2000}'}, 413, 'image'),
        ({'image': 'http://localhost/a.png'}, 400, 'image'),
    ],
)
def test_limits(fields, status, param):
    with pytest.raises(ApiError) as error:
        preview_question(PreviewRequest(**{'image': URI, **fields}), SERVED)
    assert (error.value.status, error.value.param) == (status, param)
