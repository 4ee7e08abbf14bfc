"""How rows become batches."""

from dataclasses import dataclass

from vipllava_jax.data.conversations import check_trainable
from vipllava_jax.inputs.pixels import Fit, check_fit
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE
from vipllava_jax.messages import brief

RANGES = (  # fields of BatchSettings with their smallest and largest values
    ('batch_size', 1, 2**16),
    ('max_length', 1, 2**31 - 1),
    ('pad_to_multiple_of', 1, 2**31 - 1),
    ('seed', 0, 2**63 - 1),
)


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How rows become batches; ValueError for a value out of range."""

    batch_size: int
    seed: int | None = 0  # None: for evaluation, in the order of the file and without random marks
    template: str = DEFAULT_TEMPLATE
    fit: Fit | None = None
    max_length: int = 2048  # tokens; longer conversations are truncated
    group_by_length: bool = True  # the rows of a batch have about the same length: T and I take few values
    pad_to_multiple_of: int = 128  # the length T of a batch is a multiple of this
    skip_broken: bool = False  # the next good row takes the place of a broken one
    workers: int = 0  # processes that prepare batches; 0: they are prepared in this process

    def __post_init__(self) -> None:
        check_trainable(self.template)
        check_fit(self.fit)
        for name, smallest, largest in RANGES:
            value = getattr(self, name)
            if value is not None and not smallest <= value <= largest:
                raise ValueError(f'{name} is {brief(value)}: give {smallest} to {largest:,}')
