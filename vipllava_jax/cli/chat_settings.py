"""Settings of generation that are changed within a chat: '/set temperature 0.7'."""

from typing import TYPE_CHECKING, Any

from vipllava_jax.cli.generation_options import (
    OF_SEVERAL,
    OPTIONS,
    other_settings,
    read_value,
)
from vipllava_jax.messages import brief

if TYPE_CHECKING:
    from vipllava_jax.generation.settings import GenerationSettings

DEFAULT = 'default'  # the value that restores the default


def setting_names() -> list[str]:
    """The settings of a chat."""
    return [name for name in (*OPTIONS, *other_settings()) if name not in OF_SEVERAL]


def with_setting(settings: 'GenerationSettings', text: str) -> 'GenerationSettings':
    """The settings with one changed by 'NAME VALUE', 'NAME=VALUE' or '--OPTION VALUE'.

    Raises ValueError, naming the setting, if there is none of this name or its value is invalid.
    """
    from vipllava_jax.generation.setting_checks import NUMBERS
    from vipllava_jax.generation.settings import with_overrides

    name, value = read_setting(text)
    if isinstance(value, list) and name in NUMBERS:
        raise ValueError(f'{name} is {brief(value)}: give one number')
    if value == DEFAULT:
        value = type(settings).__dataclass_fields__[name].default
    return with_overrides(settings, {name: value})


def read_setting(text: str) -> tuple[str, Any]:
    """The name and the value of a setting; raises ValueError as `with_setting`."""
    from vipllava_jax.generation.refused_settings import explain

    first, _, value = text.partition(' ')
    given, equals, rest = first.partition('=')
    value = (f'{rest} {value}' if equals else value).strip()
    by_option = {option: name for name, option in OPTIONS.items()}
    name = by_option.get(given, given.lstrip('-').replace('-', '_'))
    if name in OF_SEVERAL:
        raise ValueError(f'{name} is not a setting of a chat, which goes on from one answer')
    if name not in setting_names():
        raise ValueError(explain(name, setting_names()))
    if not value:
        raise ValueError(f'{name} has no value: /set {name} VALUE; {DEFAULT} restores the default')
    try:
        return name, read_value(value)
    except ValueError as error:
        raise ValueError(f'{name} is {brief(value)}, which is not valid JSON: {error}') from None
