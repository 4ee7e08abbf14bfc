"""What an engine has done so far, and what it does now."""

from dataclasses import dataclass


@dataclass
class Counts:
    """Counts of an engine since it was started; only its own thread changes them."""

    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of prompts, that were not computed again
    new_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    compilations: int = 0  # after the engine was ready
    steps: int = 0
    row_steps: int = 0  # rows that were decoded, added up over the steps
    lane_steps: int = 0  # rows of the lanes that were decoded, free ones too, added up over the steps
    seconds_waiting: float = 0.0  # for questions, with nothing to do
    rollbacks: int = 0  # of answers, to the last token that their format allows


@dataclass(frozen=True)
class Stats:
    """The state of an engine at one moment."""

    rows: int
    long_rows: int
    slots: int
    running: int  # answers that are being generated
    waiting: int  # questions that are ready, and wait for a row
    preparing: int  # questions whose pictures are being prepared
    finished: int
    failed: int
    cancelled: int
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    prefix_queries: int
    prefix_hits: int
    prefix_bytes: int
    compilations: int
    steps: int
    row_steps: int
    lane_steps: int
    seconds_waiting: float
    rollbacks: int = 0

    @property
    def filled(self) -> float:
        """How full the rows were, from 0 to 1, on average over all steps."""
        return self.row_steps / self.lane_steps if self.lane_steps else 0.0
