"""Generates chat templates with doubling loops, nested ranges and filters with huge arguments."""

from hypothesis import strategies as st

from tests.fuzz.nasty import Draw, words

LARGE = words("""  2  60  1000  99999  999999999  10**9  -1  2**31  2**64  1.5  none  """)
ATOMS = words("""
    messages  messages[0]['content']  messages[-1]['role']  bos_token  eos_token  tools  documents
    'x'  'a b ' * 1000  'x' * 99999  '<image>'  [1, 2]  {'a': 'b'}  none  true  text  i  loop.index  loop
    range(99999)  range(10**9)  namespace(s="x")  joiner(",")  lipsum(999999)  cycler('x')  dict(a=1)  self
    strftime_now('%Y')  strftime_now('%' * 99)  ''.__class__  messages.__len__  undefined.x  caller()  m(1)
    raise_exception('no \x1b[2J')  '\x1b[31m'
""")
FILTERS = words("""
    upper  list  join  join('x' * 9999)  tojson  tojson(indent={})  wordwrap(1)  wordwrap({})  string  trim
    center({})  indent({})  batch({})|list  slice({})|list  truncate({})  round({})  urlize  urlencode
    replace('', 'x' * 9999)  replace('x', 'xx')  striptags  xmlattr  pprint  map('center', {})|list  sort
    map('upper')|join  unique|list  groupby('role')  first  last  sum  random  length  int  float  reverse
    format({})  filesizeformat  items|list  selectattr('role')|list  map(attribute='content')|join
    sum(start=[])  default({})  attr("x")
""")
METHODS = words("""
    ljust({})  zfill({})  center({})  expandtabs({})  split()  join(['x'] * 99999)  encode()  splitlines()
    replace('', 'x' * 9999)  translate({{120: 'x' * 9999}})  format({})  append({})  __format__('999999999')
    items()  title()  startswith('x')  copy()  update(a=1)
""")
FORMATS = words("""
    '%{}d' % 1  '%{}s'|format('x')  '{{:>{}}}'.format(1)  '%.{}f' % 1.0  '%*d' % ({}, 1)  {} ** {}
""")
OPERATORS = words('+  ~  *  %  //  in  ==  **')
PROMPT = "{{ bos_token }}USER: <image>\n{{ messages[0]['content'][-1]['text'] }} ASSISTANT:"
STATEMENTS = (
    '{{% for i in range({large}) %}}{body}{{% endfor %}}',
    '{{% for i in {value} %}}{body}{{% break %}}{{% endfor %}}',
    '{{% for i in {value} recursive %}}{{{{ loop(i) }}}}{body}{{% endfor %}}',
    '{{% for m in messages %}}{{{{ m.content }}}}{body}{{% continue %}}{{% endfor %}}',
    '{{% set s = {value} %}}{{% for i in range(60) %}}{{% set s = s ~ s %}}{{% endfor %}}{{{{ s }}}}',
    *(
        f'{{{{% set ns = namespace(x={first}) %}}}}{{{{% for i in range({{large}}) %}}}}'
        f'{{{{% set ns.x = ns.x {operator} ns.x %}}}}{{{{% endfor %}}}}{{{{{{{{ ns.x }}}}}}}}'
        for first, operator in (("'x'", '~'), ('[1]', '+'), ('9', '*'))
    ),
    '{{% macro m(x) %}}{body}{{{{ m(x) }}}}{{% endmacro %}}{{{{ m({value}) }}}}',
    '{{% set text %}}{body}{{% endset %}}{{{{ text * 999 }}}}',
    '{{% if {value} %}}{body}{{% elif {value} %}}{{% else %}}{body}{{% endif %}}',
    '{{% filter {filter} %}}{body}{{% endfilter %}}',
    '{{% generation %}}{body}{{% endgeneration %}}',
    '{{% call m({value}) %}}{body}{{% endcall %}}',
    "{{% include {value} %}}{{% import 'x' as y %}}",
    '{{% with text = {value} %}}{body}{{% endwith %}}{{# {body} #}}{{% raw %}}{body}{{% endraw %}}',
    '{{{{ {value} }}}}{body}',
)


@st.composite
def values(draw: Draw, depth: int = 2) -> str:
    """An expression."""
    large = draw(st.sampled_from(LARGE))
    choice = draw(st.integers(0, 5)) if depth else 0
    if choice <= 1:
        return draw(st.sampled_from(ATOMS))
    if choice == 2:
        return draw(st.sampled_from(FORMATS)).replace('{}', large).replace('{{', '{').replace('}}', '}')
    inner = draw(values(depth - 1))
    if choice == 3:
        return f'({inner})|{draw(st.sampled_from(FILTERS)).format(large)}'
    if choice == 4:
        return f'({inner}).{draw(st.sampled_from(METHODS)).format(large)}'
    return f'({inner} {draw(st.sampled_from(OPERATORS))} {large})'


@st.composite
def templates(draw: Draw, depth: int = 3) -> str:
    """A valid prompt, followed by up to three statements, which may be nested."""
    text = PROMPT if depth == 3 else 'x'
    for _ in range(draw(st.integers(1, 3)) if depth else 0):
        body = draw(templates(depth - 1)) if draw(st.booleans()) else 'x'
        name = draw(st.sampled_from(FILTERS)).format(60)
        fields = dict(body=body, value=draw(values()), large=draw(st.sampled_from(LARGE)), filter=name)
        text += draw(st.sampled_from(STATEMENTS)).format(**fields)
    return text
