"""The answers of `vipllava ask` and their settings as JSON."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vipllava_jax.answering.regions import CompleteReply
    from vipllava_jax.answering.replies import Reply

ALWAYS = ('max_new_tokens', 'temperature', 'top_p', 'top_k', 'seed')  # reported even if they are not given


def reported_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that repeat the answers: those of ALWAYS on the first level, the others in `settings`."""
    others = {name: value for name, value in settings.items() if name not in ALWAYS}
    return {**{name: settings.get(name) for name in ALWAYS}, **({'settings': others} if others else {})}


def report_answers(replies: 'Sequence[Reply]', texts: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Complete replies to a question and their texts -> the report of the answers, and the numbers of all."""
    answers = [report_answer(reply, text) for reply, text in zip(replies, texts, strict=True)]
    if len(answers) == 1:
        return answers[0], replies[0].report()
    tokens = sum(len(reply.tokens) for reply in replies)
    return {'answers': answers}, {
        'prompt_tokens': replies[0].prompt_tokens,
        'new_tokens': tokens,
        **report_speed(replies),
    }


def report_speed(replies: 'Sequence[Reply]') -> dict[str, Any]:
    """The seconds until the first token of replies generated together, and the tokens per second of all."""
    begin = replies[0].times[1]
    end = max((reply.times[-1] for reply in replies if len(reply.times) > 2), default=begin)
    tokens = sum(len(reply.tokens) for reply in replies)
    return {
        'first_token_seconds': replies[0].report()['first_token_seconds'],
        'tokens_per_second': round((tokens - len(replies)) / (end - begin), 1) if end > begin else None,
    }


def report_answer(reply: 'CompleteReply', text: str) -> dict[str, Any]:
    """One answer, with the log-probabilities and the score that its settings ask for."""
    from vipllava_jax.answering.token_reports import token_reports

    report = {'answer': text, 'new_tokens': len(reply.tokens), 'finish_reason': reply.finish_reason}
    answer = reply.generated()
    if answer.sequence_score is not None:
        report['sequence_score'] = round(answer.sequence_score, 6)
    if answer.logprobs is not None:
        report['logprobs'] = token_reports(reply.processor, answer)
    return report
