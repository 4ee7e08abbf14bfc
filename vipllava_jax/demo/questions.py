"""Questions about a scene, each with its one right answer, in varied words."""

import math
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

from vipllava_jax.demo.marking import Marked
from vipllava_jax.demo.world import COLORS, KINDS, SIDE, SIZES, TEXTURES, Scene, Thing
from vipllava_jax.inputs.marks import COLORS as MARK_COLORS

NUMBERS = ('none', 'one', 'two', 'three', 'four', 'five', 'six', 'seven')
SIDES = {'left': (-1, 0), 'right': (1, 0), 'above': (0, -1), 'below': (0, 1)}
PLURALS = {'box': 'boxes', 'cross': 'crosses', 'fish': 'fish'}
PLAIN_COLORS = ('red', 'lime', 'blue', 'fuchsia', 'aqua', 'purple')  # a mark's, told apart even when faint
SENTENCE = (' Answer in a sentence.', ' Use a whole sentence.')
PHRASE = (' Answer with a word or a short phrase.', ' Answer in a few words.', ' Be short.')


class Question(NamedTuple):
    """What is asked and answered, the type of it, the facts that it needs and those that it gives away."""

    type: str
    text: str
    answer: str
    sentence: str  # the answer in a sentence
    facts: frozenset[tuple[object, ...]] = frozenset()


class View(NamedTuple):
    """A scene with its marks, as it is asked about."""

    scene: Scene
    marks: Sequence[Marked] = ()

    def thing(self, i: int) -> Thing:
        return self.scene.things[self.marks[i].thing]


def ask(rng: Random, view: View, count: int, types: Sequence[str] = ()) -> list[Question]:
    """So many questions, or fewer, of which none gives away what another asks; only of `types` if given."""
    makers = [(name, make) for name, make in _makers(view) if not types or name in types]
    weights = [WEIGHTS.get(name, 1.0) for name, _ in makers]
    found: list[Question] = []
    known: set[tuple[object, ...]] = set()
    for _ in range(6 * count):
        if len(found) == count or not makers:
            break
        _, make = rng.choices(makers, weights)[0]
        question = make(rng, view)
        if question and not question.facts & known:
            found.append(question)
            known |= question.facts
    return found


def styled(rng: Random, question: Question) -> tuple[str, str]:
    """The question's text, perhaps with a wish for how to answer, and the answer in that form."""
    wish = rng.random()
    if wish < 0.15:
        return question.text + rng.choice(SENTENCE), question.sentence
    return question.text + (rng.choice(PHRASE) if wish < 0.25 else ''), question.answer


Make = Callable[[Random, View], Question | None]
WEIGHTS = {'kind': 3, 'describe': 3, 'list': 2, 'neighbour': 2, 'colour': 1.5, 'relation': 3, 'compare': 2, 'position': 1.5,
           'exists': 0.5, 'count': 0.5}  # fmt: skip


def _makers(view: View) -> Iterator[tuple[str, Make]]:
    for name, make in OF_SCENE.items():
        yield name, make
    for name, make in OF_MARK.items():
        if view.marks:
            yield name, make
    for name, make in OF_TWO.items():
        if len(view.marks) == 2:
            yield name, make


def spoken(rng: Random, view: View, i: int) -> str:
    """A mark's thing in words: 'the object within the red rectangle'."""
    mark = view.marks[i].mark
    noun = rng.choice(('object', 'thing'))
    if len(view.marks) == 1 and rng.random() < 0.4:
        return rng.choice(
            (
                f'the marked {noun}',
                f'the {noun} that is marked',
                f'the {noun} with the mark',
                f'the highlighted {noun}',
            )
        )
    phrase = mark.phrase
    shapes = [other.mark.shape for other in view.marks]
    if shapes.count(mark.shape) == 1 and rng.random() < 0.25:
        phrase = phrase.replace(f'{mark.color} ', '')
    return f'the {noun} {phrase}'


def _pick(rng: Random, view: View) -> tuple[int, Thing, str]:
    i = rng.randrange(len(view.marks))
    return i, view.thing(i), spoken(rng, view, i)


def kind(rng: Random, view: View) -> Question:
    i, thing, it = _pick(rng, view)
    mark = view.marks[i].mark
    text = rng.choice(
        (
            f'What is {it}?',
            f'What is {it}?',
            f'Which kind of thing is {it}?',
            f'Name {it}.',
            f'What do you see as {it}?',
        )
    )
    if rng.random() < 0.25:
        text = f'What is {mark.phrase}?'
    fact = ('kind', view.marks[i].thing)
    return Question('kind', text, f'a {thing.kind}', f'It is a {thing.kind}.', frozenset({fact}))


def colour(rng: Random, view: View) -> Question:
    i, thing, it = _pick(rng, view)
    word = rng.choice(('colour', 'colour', 'color'))
    text = rng.choice(
        (f'What {word} is {it}?', f'Which {word} does {it} have?', f'What is the {word} of {it}?')
    )
    fact = ('colour', view.marks[i].thing)
    return Question('colour', text, thing.color, f'It is {thing.color}.', frozenset({fact}))


def size(rng: Random, view: View) -> Question:
    i, thing, it = _pick(rng, view)
    text = rng.choice((f'How large is {it}?', f'How big is {it}?', f'What size is {it}?'))
    fact = ('size', view.marks[i].thing)
    return Question('size', text, thing.size, f'It is {thing.size}.', frozenset({fact}))


def texture(rng: Random, view: View) -> Question:
    i, thing, it = _pick(rng, view)
    text = rng.choice(
        (f'What pattern does {it} have?', f'Which pattern is on {it}?', f'What is the pattern of {it}?')
    )
    fact = ('texture', view.marks[i].thing)
    return Question('texture', text, thing.texture, f'It is {thing.texture}.', frozenset({fact}))


def describe(rng: Random, view: View) -> Question:
    i, thing, it = _pick(rng, view)
    text = rng.choice((f'Describe {it}.', f'What does {it} look like?', f'Describe {it} in detail.'))
    facts = frozenset((fact, view.marks[i].thing) for fact in ('kind', 'colour', 'size', 'texture'))
    return Question('describe', text, f'a {thing.long}', f'It is a {thing.long}.', facts)


def check(rng: Random, view: View) -> Question:
    """Yes or no about one thing."""
    i, thing, it = _pick(rng, view)
    what = rng.choice(('kind', 'colour', 'texture'))
    right, others = {
        'kind': (thing.kind, KINDS),
        'colour': (thing.color, tuple(COLORS)),
        'texture': (thing.texture, TEXTURES),
    }[what]
    yes = rng.random() < 0.5
    near = {'kind': [o.kind for o in view.scene.things], 'colour': [o.color for o in view.scene.things]}
    wrong = [other for other in (near.get(what, ()) if rng.random() < 0.6 else others) if other != right]
    if not wrong:
        wrong = [other for other in others if other != right]
    word = right if yes else rng.choice(wrong)
    text = f'Is {it} {"a " if what == "kind" else ""}{word}?'
    said = 'Yes, it is.' if yes else 'No, it is not.'
    return Question('yes or no', text, 'yes' if yes else 'no', said, frozenset({(what, view.marks[i].thing)}))


def _third(at: float) -> int | None:
    """Which third of the picture a coordinate is in, or None at their border."""
    part = 3 * at / SIDE
    return None if min(abs(part - 1), abs(part - 2)) < 0.12 else int(part)


def position(rng: Random, view: View) -> Question | None:
    i, thing, it = _pick(rng, view)
    column, row = _third(thing.x), _third(thing.y)
    if column is None or row is None:
        return None
    answer = (
        ('at the top left', 'at the top', 'at the top right'),
        ('on the left', 'in the centre', 'on the right'),
        ('at the bottom left', 'at the bottom', 'at the bottom right'),
    )[row][column]
    text = rng.choice(
        (f'Where is {it}?', f'Where in the picture is {it}?', f'In which part of the picture is {it}?')
    )
    return Question('position', text, answer, f'It is {answer}.', frozenset({('place', view.marks[i].thing)}))


def nearest(scene: Scene, index: int, side: str) -> int | None:
    """The nearest thing on a side of another, -1 if there is none, None if one could argue."""
    dx, dy = SIDES[side]
    thing, found = scene.things[index], []
    for j, other in enumerate(scene.things):
        ahead = (other.x - thing.x) * dx + (other.y - thing.y) * dy
        aside = abs((other.x - thing.x) * dy) + abs((other.y - thing.y) * dx)
        if j != index and ahead > 0 and aside < 1.35 * ahead:
            found.append((math.hypot(ahead, aside), aside < 0.75 * ahead, j))
    if not found:
        return -1
    found.sort()
    distance, clear, j = found[0]
    close = [other for other in found[1:] if other[0] < 1.25 * distance]
    return j if clear and not close else None


def neighbour(rng: Random, view: View) -> Question | None:
    i, _, it = _pick(rng, view)
    side = rng.choice(tuple(SIDES))
    j = nearest(view.scene, view.marks[i].thing, side)
    if j is None or (j == -1 and rng.random() < 0.75):
        return None
    place = f'{side} of' if side in ('left', 'right') else side
    places = (place, f'to the {place}') if side in ('left', 'right') else (place,)
    text = rng.choice(('What is {} {}?', 'What is next {} {}?', 'Which object is {} {}?')).format(
        rng.choice(places), it
    )
    answer = 'nothing' if j == -1 else f'a {view.scene.things[j].short}'
    facts = {('beside', i, side)} if j == -1 else {('kind', j), ('colour', j)}
    return Question('neighbour', text, answer, f'There is {answer}.', frozenset(facts))


def alike(rng: Random, view: View) -> Question:
    i, thing, it = _pick(rng, view)
    what = rng.choice(('kind', 'colour'))
    same = [
        o
        for o in view.scene.things
        if o is not thing and (o.kind == thing.kind if what == 'kind' else o.color == thing.color)
    ]
    words = {
        'kind': ('How many other objects are of the same kind as {}?', 'How many others are like {}?'),
        'colour': (
            'How many other objects have the same colour as {}?',
            'How many other things share the colour of {}?',
        ),
    }[what]
    number = NUMBERS[len(same)]
    said = f'There {"is" if number == "one" else "are"} {number}.'
    return Question('alike', rng.choice(words).format(it), number, said, frozenset({('alike', what, i)}))


def mark(rng: Random, view: View) -> Question | None:
    if len(view.marks) > 1:
        return None
    mark = view.marks[0].mark
    if rng.random() < 0.5 or mark.color not in PLAIN_COLORS or mark.shape == 'mask':
        text = rng.choice(
            ('What shape is the mark?', 'Which mark is in the picture?', 'What kind of mark is there?')
        )
        return Question(
            'mark', text, mark.shape.split()[-1], f'It is {"an" if mark.shape[0] in "ae" else "a"} {mark.shape}.',
            frozenset({('mark',)}),
        )  # fmt: skip
    text = rng.choice(('What colour is the mark?', 'Which colour does the mark have?'))
    return Question('mark', text, str(mark.color), f'It is {mark.color}.', frozenset({('mark',)}))


def relation(rng: Random, view: View) -> Question | None:
    a, b = rng.sample((0, 1), 2)
    (x, y), (u, v) = ((view.thing(i).x, view.thing(i).y) for i in (a, b))
    across, down = x - u, y - v
    if max(abs(across), abs(down)) < 1.4 * min(abs(across), abs(down)):
        return None
    if abs(across) > abs(down):
        answer = 'to the left' if across < 0 else 'to the right'
    else:
        answer = 'above' if down < 0 else 'below'
    it, that = spoken(rng, view, a), spoken(rng, view, b)
    text = rng.choice(
        (
            f'Where is {it} compared with {that}?',
            f'Seen from {that}, where is {it}?',
            f'On which side of {that} is {it}?',
        )
    )
    return Question('relation', text, answer, f'It is {answer}.', frozenset({('relation',)}))


def compare(rng: Random, view: View) -> Question:
    one, other = view.thing(0), view.thing(1)
    it, that = spoken(rng, view, 0), spoken(rng, view, 1)
    indices = [marked.thing for marked in view.marks]
    if one.size != other.size and rng.random() < 0.5:
        yes = SIZES[one.size] > SIZES[other.size]
        word = rng.choice(('larger', 'smaller'))
        yes = yes == (word == 'larger')
        text = f'Is {it} {word} than {that}?'
        said = 'Yes, it is.' if yes else 'No, it is not.'
        facts = frozenset(('size', i) for i in indices)
        return Question('compare', text, 'yes' if yes else 'no', said, facts)
    what = rng.choice(('kind', 'colour'))
    yes = one.kind == other.kind if what == 'kind' else one.color == other.color
    words = (
        ('Are {} and {} of the same kind?',) if what == 'kind' else ('Do {} and {} have the same colour?',)
    )
    text = rng.choice(words).format(it, that)
    pair = ('they are', 'they are not') if what == 'kind' else ('they do', 'they do not')
    said = f'Yes, {pair[0]}.' if yes else f'No, {pair[1]}.'
    return Question('compare', text, 'yes' if yes else 'no', said, frozenset((what, i) for i in indices))


def exists(rng: Random, view: View) -> Question:
    things = view.scene.things
    yes = rng.random() < 0.5
    whole = rng.random() < 0.5
    if yes:
        thing = rng.choice(things)
        word = thing.short if whole else thing.kind
    else:
        words = (
            {f'{o.color} {p.kind}' for o in things for p in things} - {o.short for o in things}
            if whole and rng.random() < 0.7
            else set()
        )
        absent = sorted(words) or sorted(set(KINDS) - {o.kind for o in things})
        word = rng.choice(absent)
    text = rng.choice(('Is there a {}?', 'Is there a {} in the picture?', 'Do you see a {}?')).format(word)
    shown = 'Yes, there is.' if yes else 'No, there is not.'
    if text.startswith('Do'):
        shown = 'Yes, I do.' if yes else 'No, I do not.'
    facts = frozenset({('exists', word)})
    return Question('exists', text, 'yes' if yes else 'no', shown, facts)


def plural(kind: str) -> str:
    return PLURALS.get(kind, kind + 's')


def count(rng: Random, view: View) -> Question:
    things = view.scene.things
    what = rng.choice(('all', 'kind', 'colour'))
    if what == 'all':
        number, words, fact = len(things), rng.choice(('objects', 'things')), 'all'
    elif what == 'kind':
        fact = rng.choice(things).kind if rng.random() < 0.85 else rng.choice(KINDS)
        number, words = sum(o.kind == fact for o in things), plural(fact)
    else:
        fact = rng.choice(things).color if rng.random() < 0.85 else rng.choice(tuple(COLORS))
        number, words = sum(o.color == fact for o in things), f'{fact} {rng.choice(("objects", "things"))}'
    text = rng.choice(('How many {} are there?', 'How many {} do you see?', 'Count the {}.')).format(words)
    said = f'There {"is" if number == 1 else "are"} {NUMBERS[number]}.'
    return Question('count', text, NUMBERS[number], said, frozenset({('count', fact)}))


def list_all(rng: Random, view: View) -> Question | None:
    """Everything in one order, unless two things are too close in it."""
    orders = []
    for axis, words in (('x', ('from left to right',)), ('y', ('from top to bottom',))):
        things = sorted(view.scene.things, key=lambda o: getattr(o, axis))
        gaps = [getattr(b, axis) - getattr(a, axis) for a, b in zip(things, things[1:], strict=False)]
        if min(gaps, default=99) > 9:
            orders.append((things, rng.choice(words)))
    if not orders:
        return None
    things, words = rng.choice(orders)
    text = rng.choice(('List the objects {}.', 'Name all objects {}.', 'What do you see {}?')).format(words)
    named = [f'a {o.short}' for o in things]
    answer = ', '.join(named)
    facts = {(fact, j) for j in range(len(things)) for fact in ('kind', 'colour')} | {('all',)}
    said = f'I see {answer}.'
    return Question('list', text, answer, said, frozenset(facts))


def about_world(rng: Random) -> Question:
    """A question that needs no picture."""
    draw = rng.random()
    if draw < 0.3:
        words, listed = rng.choice(
            (
                (('What kinds of objects are there in your world?', 'Which objects do you know?'), KINDS),
                (
                    ('What colours do objects have in your world?', 'Which colours do you know?'),
                    tuple(COLORS),
                ),
                (('What sizes are there in your world?',), tuple(SIZES)),
                (('What patterns are there in your world?', 'Which patterns do you know?'), TEXTURES),
                (('Which colours can a mark have?',), tuple(MARK_COLORS)),
            )
        )
        answer = ', '.join(listed)
        return Question('words', rng.choice(words), answer, f'There are {answer}.')
    if draw < 0.6:
        a, b = rng.randint(1, 4), rng.randint(1, 3)
        one, other = rng.sample(KINDS, 2)
        text = (
            f'There {"is" if a == 1 else "are"} {NUMBERS[a]} {one if a == 1 else plural(one)} and '
            f'{NUMBERS[b]} {other if b == 1 else plural(other)}. How many objects are there?'
        )
        return Question('words', text, NUMBERS[a + b], f'There are {NUMBERS[a + b]}.')
    word = rng.choice((*KINDS, *COLORS, *TEXTURES))
    what = 'kind' if word in KINDS else 'colour' if word in COLORS else 'pattern'
    asked = rng.choice(('kind', 'colour', 'pattern'))
    text = f'Is {word} a {asked}?' if word not in KINDS else f'Is a {word} a {asked} of object?'
    if asked == 'kind' and word not in KINDS:
        text = f'Is {word} a kind of object?'
    yes = what == asked
    said = 'Yes, it is.' if yes else 'No, it is not.'
    return Question('words', text, 'yes' if yes else 'no', said)


OF_SCENE: dict[str, Make] = {'exists': exists, 'count': count, 'list': list_all}
OF_MARK: dict[str, Make] = {
    'kind': kind,
    'colour': colour,
    'size': size,
    'texture': texture,
    'describe': describe,
    'yes or no': check,
    'position': position,
    'neighbour': neighbour,
    'alike': alike,
    'mark': mark,
}
OF_TWO: dict[str, Make] = {'relation': relation, 'compare': compare}
TYPES = (*OF_SCENE, *OF_MARK, *OF_TWO, 'words')
