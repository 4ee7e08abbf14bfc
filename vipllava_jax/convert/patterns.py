"""Matches untrusted regular expressions in time linear in the length of the text.

Python's `re` backtracks: a pattern such as (a+)+b can take it years. This matcher simulates a
nondeterministic automaton, which follows all alternatives at once. It supports what patterns of module names
use: characters, classes, groups, alternatives and repetition; not lookaround, backreferences, or flags.
"""

import re
from dataclasses import dataclass, field
from typing import Any

LONGEST = 1000  # characters of a pattern
DEEPEST = 30  # groups inside one another
MAX_STATES = 1000
ACCEPT, SPLIT, START, END = 'accept', 'split', 'start', 'end'
CLASS = re.compile(r'\[\^?\]?(\\.|[^\]\\])*\]', re.DOTALL)
REPETITION = re.compile(r'([*+?])\??|\{(?!\})(\d{0,4})(,?)(\d{0,4})\}\??', re.ASCII)


class PatternError(ValueError):
    """A pattern that is malformed, too large or not supported."""


@dataclass(slots=True)
class _State:
    """A state of the automaton: the character, or the condition, that leads to the next states."""

    symbol: Any  # a compiled pattern of one character, or one of the words above
    next: list[int] = field(default_factory=list)


class Pattern:
    """A compiled pattern. Raises PatternError for one that is malformed, too large or not supported."""

    def __init__(self, text: str):
        if len(text) > LONGEST:
            raise PatternError(f'the pattern is too long: {len(text)} characters')
        self.states = [_State(ACCEPT)]
        self.first = self._compile(_Parser(text).parse(), 0)
        self.steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def fullmatch(self, text: str) -> bool:
        """Whether the pattern matches all of a text."""
        places = self._reached({self.first}, start=True, end=not text)
        for i, character in enumerate(text):
            key = places, character
            if i + 1 == len(text):
                places = self._step(*key, end=True)
            elif key in self.steps:
                places = self.steps[key]
            else:
                places = self.steps[key] = self._step(*key, end=False)
        return 0 in places

    def _step(self, places: frozenset[int], character: str, *, end: bool) -> frozenset[int]:
        states = [self.states[place] for place in places]
        matched = (s for s in states if isinstance(s.symbol, re.Pattern) and s.symbol.fullmatch(character))
        return self._reached({place for state in matched for place in state.next}, start=False, end=end)

    def _reached(self, places: set[int], *, start: bool, end: bool) -> frozenset[int]:
        """The states that can be reached without consuming a character."""
        reached, todo = set(places), list(places)
        while todo:
            state = self.states[todo.pop()]
            if state.symbol == SPLIT or (state.symbol == START and start) or (state.symbol == END and end):
                new = set(state.next) - reached
                reached |= new
                todo += new
        return frozenset(reached)

    def _add(self, symbol: Any, *after: int) -> int:
        if len(self.states) >= MAX_STATES:
            raise PatternError('the pattern repeats too much')
        self.states.append(_State(symbol, list(after)))
        return len(self.states) - 1

    def _compile(self, node: Any, after: int) -> int:
        """Adds the states of a parsed pattern, the last of which lead to `after`; returns the first."""
        match node:
            case ('alternatives', ways):
                return self._add(SPLIT, *[self._compile(way, after) for way in ways])
            case ('sequence', items):
                for item in reversed(items):
                    after = self._compile(item, after)
                return after
            case ('repeated', item, minimum, maximum):
                if maximum is None:
                    loop = self._add(SPLIT, after)
                    self.states[loop].next.append(self._compile(item, loop))
                    after = loop
                else:
                    end = after
                    for _ in range(maximum - minimum):
                        after = self._add(SPLIT, self._compile(item, after), end)
                for _ in range(minimum):
                    after = self._compile(item, after)
                return after
        return self._add(node, after)


class _Parser:
    def __init__(self, text: str):
        self.text, self.at, self.depth = text, 0, 0

    def parse(self) -> Any:
        node = self._alternatives()
        if self.at < len(self.text):
            raise PatternError('unbalanced parenthesis')
        return node

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _alternatives(self) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise PatternError(f'groups nested more than {DEEPEST} deep')
        ways = [self._sequence()]
        while self._peek() == '|':
            self.at += 1
            ways.append(self._sequence())
        self.depth -= 1
        return ('alternatives', ways)

    def _sequence(self) -> Any:
        items = []
        while self._peek() not in ('', '|', ')'):
            items.append(self._repeated(self._item()))
        return ('sequence', items)

    def _repeated(self, item: Any) -> Any:
        found = REPETITION.match(self.text, self.at)
        if not found:
            return item
        self.at = found.end()
        if REPETITION.match(self.text, self.at) or self._peek() == '+':
            raise PatternError('multiple repeat')
        if found[1]:
            return ('repeated', item, *{'*': (0, None), '+': (1, None), '?': (0, 1)}[found[1]])
        minimum = int(found[2] or 0)
        maximum = None if found[3] and not found[4] else int(found[4] or minimum)
        if maximum is not None and maximum < minimum:
            raise PatternError('min repeat greater than max repeat')
        return ('repeated', item, minimum, maximum)

    def _item(self) -> Any:
        """A character, a class, a group or an anchor."""
        character = self._peek()
        if character == '(':
            return self._group()
        if REPETITION.match(self.text, self.at):
            raise PatternError('nothing to repeat')
        length = 1
        if character == '[':
            found = CLASS.match(self.text, self.at)
            if not found:
                raise PatternError('unterminated character set')
            length = len(found[0])
        elif character == '\\':
            length = 2
            escaped = self.text[self.at + 1 : self.at + 2]
            if not escaped or (escaped.isalnum() and escaped not in 'dDsSwW'):
                raise PatternError(f'\\{escaped} is not supported')
        one = self.text[self.at : self.at + length]
        self.at += length
        if one in '^$':
            return START if one == '^' else END
        try:
            return re.compile(one if character in '.[\\' else re.escape(one))
        except re.error as error:
            raise PatternError(str(error)) from None

    def _group(self) -> Any:
        self.at += 1
        if self._peek() == '?':
            if self.text[self.at : self.at + 2] != '?:':
                raise PatternError('lookaround, flags and named groups are not supported')
            self.at += 2
        node = self._alternatives()
        if self._peek() != ')':
            raise PatternError('missing ), unterminated subpattern')
        self.at += 1
        return node
