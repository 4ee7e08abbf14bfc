"""Generates questions about one marked thing: its kind, appearance, position and neighbours."""

import math
from random import Random

from vipllava_jax.demo.questions import Make, Question, View, number, refer_to, yes_or_no
from vipllava_jax.demo.world import COLORS, KINDS, SIDE, TEXTURES, Scene, Thing

SIDES = {'left': (-1, 0), 'right': (1, 0), 'above': (0, -1), 'below': (0, 1)}
PLACES = (
    ('at the top left', 'at the top', 'at the top right'),
    ('on the left', 'in the centre', 'on the right'),
    ('at the bottom left', 'at the bottom', 'at the bottom right'),
)
CLEAR_COLORS = ('red', 'lime', 'blue', 'fuchsia', 'aqua', 'purple')  # distinguishable even when translucent


def _random_marked_thing(rng: Random, view: View) -> tuple[int, Thing, str]:
    """The thing under a random mark: its index in the scene, the thing, and a phrase for it."""
    i = rng.randrange(len(view.marks))
    return view.marks[i].thing, view.thing(i), refer_to(rng, view, i)


def kind(rng: Random, view: View) -> Question:
    i = rng.randrange(len(view.marks))
    thing, it = view.thing(i), refer_to(rng, view, i)
    words = ('What is {}?', 'What is {}?', 'Which kind of thing is {}?', 'Name {}.', 'What do you see as {}?')
    text = rng.choice(words).format(it)
    if rng.random() < 0.25:
        text = f'What is {view.marks[i].mark.phrase}?'
    facts = frozenset({('kind', view.marks[i].thing)})
    return Question('kind', text, f'a {thing.kind}', f'It is a {thing.kind}.', facts)


def colour(rng: Random, view: View) -> Question:
    at, thing, it = _random_marked_thing(rng, view)
    word = rng.choice(('colour', 'colour', 'color'))
    text = rng.choice(('What {} is {}?', 'Which {} does {} have?', 'What is the {} of {}?')).format(word, it)
    return Question('colour', text, thing.color, f'It is {thing.color}.', frozenset({('colour', at)}))


def size(rng: Random, view: View) -> Question:
    at, thing, it = _random_marked_thing(rng, view)
    text = rng.choice(('How large is {}?', 'How big is {}?', 'What size is {}?')).format(it)
    return Question('size', text, thing.size, f'It is {thing.size}.', frozenset({('size', at)}))


def texture(rng: Random, view: View) -> Question:
    at, thing, it = _random_marked_thing(rng, view)
    words = ('What pattern does {} have?', 'Which pattern is on {}?', 'What is the pattern of {}?')
    text = rng.choice(words).format(it)
    return Question('texture', text, thing.texture, f'It is {thing.texture}.', frozenset({('texture', at)}))


def describe(rng: Random, view: View) -> Question:
    at, thing, it = _random_marked_thing(rng, view)
    words = ('Describe {}.', 'What does {} look like?', 'Describe {} in detail.')
    facts = frozenset((fact, at) for fact in ('kind', 'colour', 'size', 'texture'))
    text = rng.choice(words).format(it)
    return Question('describe', text, f'a {thing.long}', f'It is a {thing.long}.', facts)


def yes_no_attribute(rng: Random, view: View) -> Question:
    """A yes-or-no question about an attribute; wrong values are often those of other things in the scene."""
    at, thing, it = _random_marked_thing(rng, view)
    around = view.scene.things
    what, right, near, all = rng.choice(
        (
            ('kind', thing.kind, [o.kind for o in around], KINDS),
            ('colour', thing.color, [o.color for o in around], tuple(COLORS)),
            ('texture', thing.texture, [o.texture for o in around], TEXTURES),
        )
    )
    yes = rng.random() < 0.5
    wrong = [word for word in (near if rng.random() < 0.6 else all) if word != right]
    word = right if yes else rng.choice(wrong or [word for word in all if word != right])
    text = f'Is {it} {"a " if what == "kind" else ""}{word}?'
    return yes_or_no('yes or no', text, yes, {(what, at)})


def _third(at: float) -> int | None:
    """The third of the picture, 0 to 2, that holds a coordinate; None near the borders between thirds."""
    part = 3 * at / SIDE
    return None if min(abs(part - 1), abs(part - 2)) < 0.12 else int(part)


def position(rng: Random, view: View) -> Question | None:
    at, thing, it = _random_marked_thing(rng, view)
    column, row = _third(thing.x), _third(thing.y)
    if column is None or row is None:
        return None
    answer = PLACES[row][column]
    words = ('Where is {}?', 'Where in the picture is {}?', 'In which part of the picture is {}?')
    text = rng.choice(words).format(it)
    return Question('position', text, answer, f'It is {answer}.', frozenset({('place', at)}))


def nearest(scene: Scene, index: int, side: str) -> int | None:
    """The index of the nearest thing on a side of another; -1 if there is none, None if it is ambiguous."""
    dx, dy = SIDES[side]
    thing, candidates = scene.things[index], []
    for j, other in enumerate(scene.things):
        ahead = (other.x - thing.x) * dx + (other.y - thing.y) * dy
        aside = abs((other.x - thing.x) * dy) + abs((other.y - thing.y) * dx)
        if j != index and ahead > 0 and aside < 1.35 * ahead:
            candidates.append((math.hypot(ahead, aside), aside < 0.75 * ahead, j))
    if not candidates:
        return -1
    (distance, clear, j), *others = sorted(candidates)
    return j if clear and not any(other[0] < 1.25 * distance for other in others) else None


def neighbour(rng: Random, view: View) -> Question | None:
    at, _, it = _random_marked_thing(rng, view)
    side = rng.choice(tuple(SIDES))
    j = nearest(view.scene, at, side)
    if j is None or (j == -1 and rng.random() < 0.75):  # otherwise half of the answers would be 'nothing'
        return None
    place = rng.choice((f'{side} of', f'to the {side} of')) if side in ('left', 'right') else side
    words = ('What is {} {}?', 'What is next {} {}?', 'Which object is {} {}?')
    text = rng.choice(words).format(place, it)
    answer = 'nothing' if j == -1 else f'a {view.scene.things[j].short}'
    facts = {('neighbour', at, side)} if j == -1 else {('kind', j), ('colour', j)}
    return Question('neighbour', text, answer, f'There is {answer}.', frozenset(facts))


def alike(rng: Random, view: View) -> Question:
    at, thing, it = _random_marked_thing(rng, view)
    others = [o for o in view.scene.things if o is not thing]
    if rng.random() < 0.5:
        what, count = 'kind', sum(o.kind == thing.kind for o in others)
        words = ('How many other objects are of the same kind as {}?', 'How many others are like {}?')
    else:
        what, count = 'colour', sum(o.color == thing.color for o in others)
        words = (
            'How many other objects have the same colour as {}?',
            'How many other things share the colour of {}?',
        )
    return number('alike', rng.choice(words).format(it), count, {('alike', what, at)})


def _shape_is_recognizable(shape: str, thing: Thing) -> bool:
    """Whether a mark's shape can be recognized: not if it is too small, or follows a similar outline."""
    too_small = shape in ('triangle', 'scribble') and thing.size == 'small'
    return not too_small and not (shape == 'mask contour' and thing.kind in ('square', 'ball'))


def mark(rng: Random, view: View) -> Question | None:
    if len(view.marks) > 1:
        return None
    mark, facts = view.marks[0].mark, frozenset({('mark',)})
    if rng.random() < 0.5 or mark.color not in CLEAR_COLORS or mark.shape == 'mask':
        if not _shape_is_recognizable(mark.shape, view.thing(0)):
            return None
        words = ('What shape is the mark?', 'Which mark is in the picture?', 'What kind of mark is there?')
        article = 'an' if mark.shape[0] in 'ae' else 'a'
        return Question('mark', rng.choice(words), mark.shape, f'It is {article} {mark.shape}.', facts)
    text = rng.choice(('What colour is the mark?', 'Which colour does the mark have?'))
    return Question('mark', text, str(mark.color), f'It is {mark.color}.', facts)


MARK_QUESTIONS: dict[str, Make] = {
    'kind': kind,
    'colour': colour,
    'size': size,
    'texture': texture,
    'describe': describe,
    'yes or no': yes_no_attribute,
    'position': position,
    'neighbour': neighbour,
    'alike': alike,
    'mark': mark,
}
