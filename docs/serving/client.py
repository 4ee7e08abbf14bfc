"""Asks a server with the openai package: `vipllava serve --model demo`, then `python client.py PICTURE`."""

import base64
import json
import sys
from pathlib import Path

import openai

client = openai.OpenAI(base_url='http://127.0.0.1:8000/v1', api_key='none')  # the key, if the server has one
model = client.models.list().data[0].id


def picture(path: str, *marks: dict | str, **fields: str) -> dict:
    """A picture with marks as a part of a message."""
    data = base64.b64encode(Path(path).read_bytes()).decode()
    image_url = {'url': f'data:image/png;base64,{data}'}  # the type may be another: the bytes decide
    return {'type': 'image_url', 'image_url': image_url, 'visual_prompts': [*marks], **fields}


def message(text: str, *pictures: dict) -> dict:
    return {'role': 'user', 'content': [*pictures, {'type': 'text', 'text': text}]}


def main(path: str) -> None:
    box = {'shape': 'rectangle', 'box': [0.1, 0.1, 0.6, 0.6], 'units': 'fractions', 'color': 'red'}
    question = message('What is {mark}?', picture(path, box))

    # An answer, all at once
    answer = client.chat.completions.create(model=model, messages=[question], max_completion_tokens=32)
    print(answer.choices[0].message.content, answer.usage)

    # As it arrives
    chunks = client.chat.completions.create(
        model=model, messages=[question], stream=True, stream_options={'include_usage': True}
    )
    for chunk in chunks:
        for choice in chunk.choices:
            print(choice.delta.content or '', end='', flush=True)
    print()

    # As JSON that follows a schema
    schema = {
        'type': 'object',
        'properties': {'shape': {'enum': ['circle', 'square', 'star', 'house', 'other']}},
        'required': ['shape'],
        'additionalProperties': False,
    }
    answer = client.chat.completions.create(
        model=model,
        messages=[question],
        max_completion_tokens=64,
        response_format={'type': 'json_schema', 'json_schema': {'name': 'shape', 'schema': schema}},
    )
    print(json.loads(answer.choices[0].message.content))

    # With what the model saw, as a data URI
    answer = client.chat.completions.create(
        model=model, messages=[question], max_completion_tokens=8, extra_body={'return_image': True}
    )
    seen = answer.choices[0].message.image
    Path('seen.png').write_bytes(base64.b64decode(seen.partition(',')[2]))

    # One question about each of many regions
    regions = client.post(
        '/regions',
        body={
            'model': model,
            'image': picture(path)['image_url']['url'],
            'regions': [{**box, 'box': [x, 0.1, x + 0.4, 0.9]} for x in (0.1, 0.3, 0.5)],
            'question': 'What is {mark}?',
            'max_tokens': 16,
        },
        cast_to=object,
    )
    for entry in regions['data']:
        print(entry['index'], entry['answer'])


if __name__ == '__main__':
    main(sys.argv[1])
