"""Answers the rows of a Ray Dataset, with an engine on each GPU of the cluster."""

import sys
from typing import Any

import vipllava_jax as vj
from vipllava_jax.engine.engine import Engine


class Answers:
    """Answers one batch after another; Ray creates one per worker, which keeps the model and its programs."""

    def __init__(self, model: str, images: str | None) -> None:
        self.engine, self.images = Engine(vj.load(model)), images

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        columns = [column.tolist() for column in batch.values()]
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*columns, strict=True)]
        lines = [*vj.answers(self.engine, rows, images=self.images)]
        return {name: [line.get(name, '') for line in lines] for name in ('id', 'answer', 'error')}


if __name__ == '__main__':
    import ray

    model, images, rows, output = sys.argv[1:]
    answers = ray.data.read_json(rows, lines=True).map_batches(
        Answers, fn_constructor_args=(model, images), batch_size=1024, num_gpus=1, concurrency=8
    )
    answers.write_json(output)
