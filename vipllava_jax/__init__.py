"""ViP-LLaVA in JAX. This module lists the public API; each name is imported when it is first used."""

from vipllava_jax.version import __version__

TYPE_CHECKING = False  # importing typing would double the import time of this package

if TYPE_CHECKING:
    from vipllava_jax.answering.chat import Chat
    from vipllava_jax.answering.chat_replies import ContextFull
    from vipllava_jax.answering.choices import Choice, choose
    from vipllava_jax.answering.prefixes import prefix
    from vipllava_jax.answering.questions import answer
    from vipllava_jax.answering.regions import ask_regions
    from vipllava_jax.batch_files.answers import answers
    from vipllava_jax.config import VIP_LLAVA_7B, VIP_LLAVA_13B, Config, TextConfig, VisionConfig
    from vipllava_jax.engine.answer_format import AnswerFormat
    from vipllava_jax.engine.engine import Engine
    from vipllava_jax.engine.pieces import Answer
    from vipllava_jax.engine.question import Question, QuestionError, QueueFull
    from vipllava_jax.engine.reply import Reply
    from vipllava_jax.generation.decoding import generate, stream
    from vipllava_jax.generation.model import Model
    from vipllava_jax.generation.prefix import Prefix
    from vipllava_jax.generation.result import Generation
    from vipllava_jax.generation.settings import GenerationSettings
    from vipllava_jax.inputs.batch import Batch
    from vipllava_jax.inputs.marks import Mark, draw
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.inputs.prompts import Turn
    from vipllava_jax.loading import load
    from vipllava_jax.model.llama import Cache
    from vipllava_jax.model.params import abstract, init
    from vipllava_jax.model.vipllava import Trace, decode, extend, forward, prefill
    from vipllava_jax.model.vocabulary import embeddings, replace_embeddings, resize_vocabulary, tie, untie
    from vipllava_jax.notebook import draw_widget
    from vipllava_jax.sharding import make_mesh

_HOMES = {
    'answering.chat': ['Chat'],
    'answering.chat_replies': ['ContextFull'],
    'answering.choices': ['Choice', 'choose'],
    'answering.prefixes': ['prefix'],
    'answering.questions': ['answer'],
    'answering.regions': ['ask_regions'],
    'batch_files.answers': ['answers'],
    'config': ['VIP_LLAVA_7B', 'VIP_LLAVA_13B', 'Config', 'TextConfig', 'VisionConfig'],
    'engine.answer_format': ['AnswerFormat'],
    'engine.engine': ['Engine'],
    'engine.pieces': ['Answer'],
    'engine.question': ['Question', 'QuestionError', 'QueueFull'],
    'engine.reply': ['Reply'],
    'generation.decoding': ['generate', 'stream'],
    'generation.model': ['Model'],
    'generation.prefix': ['Prefix'],
    'generation.result': ['Generation'],
    'generation.settings': ['GenerationSettings'],
    'inputs.batch': ['Batch'],
    'inputs.marks': ['Mark', 'draw'],
    'inputs.processor': ['Processor'],
    'inputs.prompts': ['Turn'],
    'loading': ['load'],
    'model.llama': ['Cache'],
    'model.params': ['abstract', 'init'],
    'model.vipllava': ['Trace', 'decode', 'extend', 'forward', 'prefill'],
    'model.vocabulary': ['embeddings', 'replace_embeddings', 'resize_vocabulary', 'tie', 'untie'],
    'notebook': ['draw_widget'],
    'sharding': ['make_mesh'],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module

    return getattr(import_module(f'{__name__}.{_HOME[name]}'), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
