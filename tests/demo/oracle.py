"""Computes the answer to a question about the world independently, from its words and the scene alone."""

import math
import re

from vipllava_jax.demo.questions import NUMBERS
from vipllava_jax.demo.world import SIDE

SINGULAR = {'crosses': 'cross', 'fish': 'fish'}


def answer(view, text: str) -> str:
    """The right answer; ValueError for a question that is not understood."""
    text = re.sub(r' (Answer .*|Use a whole sentence|Be short)\.$', '', text)
    for rule, reply in RULES:
        if found := re.fullmatch(rule, text):
            return reply(view, *found.groups())
    raise ValueError(text)


def marked(view, words: str) -> int:
    """The index in the scene of the only thing that a phrase refers to."""
    fits = [m.thing for m in view.marks if _speaks_of(words, m.mark)]
    assert len(fits) == 1, (words, view.marks)
    return fits[0]


def _speaks_of(words: str, mark) -> bool:
    if re.search(r'\b(marked|highlighted)\b|with the mark$', words):
        return True
    return bool(re.search(rf'the ({mark.color} )?{mark.shape}$', words))


def _of(attribute):
    return lambda view, words: getattr(view.scene.things[marked(view, words)], attribute)


def _a(attribute):
    return lambda view, words: f'a {_of(attribute)(view, words)}'


def _position(view, words):
    thing = view.scene.things[marked(view, words)]
    row = ('top', '', 'bottom')[int(3 * thing.y / SIDE)]
    column = ('left', '', 'right')[int(3 * thing.x / SIDE)]
    if not row:
        return f'on the {column}' if column else 'in the centre'
    return f'at the {row} {column}'.strip()


def _neighbour(view, side, words):
    dx, dy = {'left of': (-1, 0), 'right of': (1, 0), 'above': (0, -1), 'below': (0, 1)}[side]
    me = view.scene.things[marked(view, words)]
    turned = []
    for other in view.scene.things:
        angle = math.degrees(math.atan2(other.y - me.y, other.x - me.x) - math.atan2(dy, dx))
        if other is not me and abs((angle + 180) % 360 - 180) < 45:
            turned.append((math.dist((me.x, me.y), (other.x, other.y)), other))
    return f'a {min(turned, key=lambda pair: pair[0])[1].short}' if turned else 'nothing'


def _relation(view, one, other):
    a, b = (view.scene.things[marked(view, words)] for words in (one, other))
    angle = math.degrees(math.atan2(a.y - b.y, a.x - b.x)) % 360
    return ('to the right', 'below', 'to the left', 'above')[round(angle / 90) % 4]


def _like(attribute):
    def count(view, words):
        at = marked(view, words)
        mine = getattr(view.scene.things[at], attribute)
        same = [j for j, o in enumerate(view.scene.things) if getattr(o, attribute) == mine]
        return NUMBERS[len(same) - 1]

    return count


def _count(view, words):
    if words in ('objects', 'things'):
        return NUMBERS[len(view.scene.things)]
    first, *rest = words.split()
    if rest:
        return NUMBERS[[o.color for o in view.scene.things].count(first)]
    return NUMBERS[[o.kind for o in view.scene.things].count(SINGULAR.get(first, first[:-1]))]


def _yes(yes) -> str:
    return 'yes' if yes else 'no'


def _exists(view, words):
    return _yes(any(words in (o.kind, o.short) for o in view.scene.things))


def _is(view, words, what):
    thing = view.scene.things[marked(view, words)]
    return _yes(what in (thing.color, thing.texture, f'a {thing.kind}'))


def _larger(view, one, word, other):
    a, b = (view.scene.things[marked(view, words)].radius for words in (one, other))
    return _yes(a > b if word == 'larger' else a < b)


def _same(attribute):
    return lambda view, one, other: _yes(_of(attribute)(view, one) == _of(attribute)(view, other))


def _list(axis):
    return lambda view: ', '.join(
        f'a {o.short}' for o in sorted(view.scene.things, key=lambda o: getattr(o, axis))
    )


def _mark(attribute):
    return lambda view: getattr(view.marks[0].mark, attribute)


IT = r'((?:the |within |with |at |pointed ).+?)'
RULES = [
    (r'What shape is the mark\?|Which mark is in the picture\?|What kind of mark is there\?', _mark('shape')),
    (r'What colour is the mark\?|Which colour does the mark have\?', _mark('color')),
    (r'(?:List the objects|Name all objects|What do you see) from left to right[.?]', _list('x')),
    (r'(?:List the objects|Name all objects|What do you see) from top to bottom[.?]', _list('y')),
    (rf'How many other objects are of the same kind as {IT}\?|How many others are like {IT}\?', None),
    (rf'(?:How many other objects have the same|How many other things share the) colour (?:as|of) {IT}\?',
     _like('color')),
    (r'How many (.+) (?:are there|do you see)\?', _count),
    (r'Count the (.+)\.', _count),
    (rf'(?:What is|What is next|Which object is) (?:to the )?(left of|right of|above|below) {IT}\?',
     _neighbour),
    (rf'Where is {IT} compared with {IT}\?', _relation),
    (rf'Seen from {IT}, where is {IT}\?', lambda view, b, a: _relation(view, a, b)),
    (rf'On which side of {IT} is {IT}\?', lambda view, b, a: _relation(view, a, b)),
    (rf'(?:Where|Where in the picture|In which part of the picture) is {IT}\?', _position),
    (rf'How (?:large|big) is {IT}\?|What size is {IT}\?', None),
    (rf'(?:What|Which) colou?r (?:is|does) {IT}(?: have)?\?', _of('color')),
    (rf'What is the colou?r of {IT}\?', _of('color')),
    (rf'(?:What pattern does|Which pattern is on|What is the pattern of) {IT}(?: have)?\?', _of('texture')),
    (rf'(?:Describe|What does) {IT}(?: in detail)?(?: look like)?[.?]', _a('long')),
    (rf'Is {IT} (larger|smaller) than {IT}\?', _larger),
    (rf'Are {IT} and {IT} of the same kind\?', _same('kind')),
    (rf'Do {IT} and {IT} have the same colour\?', _same('color')),
    (r'(?:Is there a|Do you see a) (.+?)(?: in the picture)?\?', _exists),
    (rf'Is {IT} (a \w+|\w+)\?', _is),
    (rf'(?:What is|Which kind of thing is|Name|What do you see as) {IT}[.?]', _a('kind')),
]  # fmt: skip


def _either(reply):
    return lambda view, *words: reply(view, next(word for word in words if word))


RULES = [
    (rule, reply or _either(_like('kind') if 'others' in rule else _of('size'))) for rule, reply in RULES
]
