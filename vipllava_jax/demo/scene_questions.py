"""Generates questions about two marked things, about a whole scene, and about the world without a picture."""

import itertools
from random import Random

from vipllava_jax.demo.questions import NUMBERS, Make, Question, View, number, plural, refer_to, yes_or_no
from vipllava_jax.demo.world import COLORS, KINDS, SIZES, TEXTURES
from vipllava_jax.inputs.marks import COLORS as MARK_COLORS


def relation(rng: Random, view: View) -> Question | None:
    a, b = rng.sample((0, 1), 2)
    one, other = view.thing(a), view.thing(b)
    across, down = one.x - other.x, one.y - other.y
    if max(abs(across), abs(down)) < 1.6 * min(abs(across), abs(down)):
        return None
    if abs(across) > abs(down):
        answer = 'to the left' if across < 0 else 'to the right'
    else:
        answer = 'above' if down < 0 else 'below'
    it, that = refer_to(rng, view, a), refer_to(rng, view, b)
    words = (
        'Where is {0} compared with {1}?',
        'Seen from {1}, where is {0}?',
        'On which side of {1} is {0}?',
    )
    text = rng.choice(words).format(it, that)
    return Question('relation', text, answer, f'It is {answer}.', frozenset({('relation',)}))


def compare(rng: Random, view: View) -> Question:
    one, other = view.thing(0), view.thing(1)
    it, that = refer_to(rng, view, 0), refer_to(rng, view, 1)
    at = [marked.thing for marked in view.marks]
    if one.size != other.size and rng.random() < 0.5:
        word = rng.choice(('larger', 'smaller'))
        yes = (SIZES[one.size] > SIZES[other.size]) == (word == 'larger')
        return yes_or_no('compare', f'Is {it} {word} than {that}?', yes, {('size', i) for i in at})
    if rng.random() < 0.5:
        text, facts = f'Are {it} and {that} of the same kind?', {('kind', i) for i in at}
        return yes_or_no('compare', text, one.kind == other.kind, facts, ('they are', 'they are not'))
    text, facts = f'Do {it} and {that} have the same colour?', {('colour', i) for i in at}
    return yes_or_no('compare', text, one.color == other.color, facts, ('they do', 'they do not'))


def exists(rng: Random, view: View) -> Question:
    """Whether the scene has such a thing; if not, it often combines a kind and a colour that do occur."""
    things = view.scene.things
    yes, with_color = rng.random() < 0.5, rng.random() < 0.5
    if yes:
        thing = rng.choice(things)
        word = thing.short if with_color else thing.kind
    else:
        mixed = {f'{o.color} {p.kind}' for o in things for p in things} - {o.short for o in things}
        near = sorted(mixed) if with_color and rng.random() < 0.7 else []
        word = rng.choice(near or sorted(set(KINDS) - {o.kind for o in things}))
    words = ('Is there a {}?', 'Is there a {} in the picture?', 'Do you see a {}?')
    text = rng.choice(words).format(word)
    replies = ('I do', 'I do not') if text.startswith('Do') else ('there is', 'there is not')
    return yes_or_no('exists', text, yes, {('exists', word)}, replies)


def count(rng: Random, view: View) -> Question:
    things, noun = view.scene.things, rng.choice(('objects', 'things'))
    what, known = rng.choice(('all', 'kind', 'colour')), rng.random() < 0.85
    if what == 'all':
        found, words = len(things), noun
    elif what == 'kind':
        kind = rng.choice(things).kind if known else rng.choice(KINDS)
        found, words = sum(o.kind == kind for o in things), plural(kind)
    else:
        color = rng.choice(things).color if known else rng.choice(tuple(COLORS))
        found, words = sum(o.color == color for o in things), f'{color} {noun}'
    text = rng.choice(('How many {} are there?', 'How many {} do you see?', 'Count the {}.')).format(words)
    return number('count', text, found, {('count', words.replace('things', 'objects'))})


def list_all(rng: Random, view: View) -> Question | None:
    """A question for all things in order of x or y; None if in both orders two things are too close."""
    orders = []
    for axis, words in (('x', 'from left to right'), ('y', 'from top to bottom')):
        things = sorted(view.scene.things, key=lambda o: getattr(o, axis))
        if min(getattr(b, axis) - getattr(a, axis) for a, b in itertools.pairwise(things)) > 14:
            orders.append((things, words))
    if not orders:
        return None
    things, words = rng.choice(orders)
    wordings = ('List the objects {}.', 'Name all objects {}.', 'What do you see {}?')
    answer = ', '.join(f'a {o.short}' for o in things)
    facts = {(fact, j) for j in range(len(things)) for fact in ('kind', 'colour')} | {('all',)}
    return Question('list', rng.choice(wordings).format(words), answer, f'I see {answer}.', frozenset(facts))


def world_question(rng: Random) -> Question:
    """A question about the world in general, or about numbers and words, without a picture."""
    make = rng.choice((_list_words, _addition, _category))
    return make(rng)


def _list_words(rng: Random) -> Question:
    wordings, words = rng.choice(
        (
            (('What kinds of objects are there in your world?', 'Which objects do you know?'), KINDS),
            (('What colours do objects have in your world?', 'Which colours do you know?'), COLORS),
            (('What sizes are there in your world?', 'Which sizes do you know?'), SIZES),
            (('What patterns are there in your world?', 'Which patterns do you know?'), TEXTURES),
            (('Which colours can a mark have?', 'What colours do marks have?'), MARK_COLORS),
        )
    )
    answer = ', '.join(words)
    return Question('words', rng.choice(wordings), answer, f'There are {answer}.')


def _addition(rng: Random) -> Question:
    a, b = rng.randint(1, 4), rng.randint(1, 3)
    one, other = rng.sample(KINDS, 2)
    first, second = (f'{NUMBERS[n]} {kind if n == 1 else plural(kind)}' for n, kind in ((a, one), (b, other)))
    verb = 'is' if a == 1 else 'are'
    return number('words', f'There {verb} {first} and {second}. How many objects are there?', a + b, set())


def _category(rng: Random) -> Question:
    what, word = rng.choice(
        [('kind of object', f'a {kind}') for kind in KINDS]
        + [('colour', color) for color in COLORS]
        + [('pattern', texture) for texture in TEXTURES]
    )
    category = what if rng.random() < 0.5 else rng.choice(('kind of object', 'colour', 'pattern'))
    return yes_or_no('words', f'Is {word} a {category}?', what == category, set())


SCENE_QUESTIONS: dict[str, Make] = {'exists': exists, 'count': count, 'list': list_all}
TWO_MARK_QUESTIONS: dict[str, Make] = {'relation': relation, 'compare': compare}
