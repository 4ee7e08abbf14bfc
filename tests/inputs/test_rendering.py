"""Untrusted templates run in one child process, with limits on time and memory, that ends with its parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vipllava_jax.inputs import rendering
from vipllava_jax.inputs.rendering import MAX_CHARACTERS, Renderer, RenderingError

ROOT = Path(__file__).parents[2]


def repeated(start: str, step: str) -> str:
    """A template that applies an operation to x many times."""
    return (
        '{% set ns = namespace(x=' + start + ') %}{% for i in range(99) %}{% set ns.x = ' + step + ' %}'
        '{% endfor %}{{ ns.x }}'
    )


HOSTILE = [
    repeated("'a'", 'ns.x ~ ns.x'),
    repeated("['a']", 'ns.x + ns.x'),
    repeated("'a'", "ns.x | replace('a', 'aa')"),
    repeated("'ab'", 'ns.x.join([ns.x, ns.x])'),
    repeated("'ab'", "'%s%s' % (ns.x, ns.x)"),
    repeated("'ab'", "'{0}{0}'.format(ns.x)"),
    repeated("'a'", "ns.x.translate({97: 'aa'})"),
    repeated('[1]', '[ns.x, ns.x]'),
    "{{ '%1000000000d' % 3 }}",
    "{{ '{:1000000000d}'.format(3) }}",
    "{{ '{:>{w}}'.format('x', w=10**10) }}",
    "{{ 'x' | center(10**10) }}",
    "{{ 'x\n' * 100000 | indent(10**6) }}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ 'x'.zfill(10**10) }}",
    "{{ 'a\t'.expandtabs(10**10) }}",
    "{{ [1] | batch(10**9, 'x') | list }}",
    '{{ range(100000) | slice(10**9) | list }}',
    "{{ 'a' * 10**12 }}",
    '{{ 10 ** (10 ** 10) }}',
    '{{ 9 ** 999999999 }}',
    '{% for i in range(99999) %}{{ i * 1000 }} {{ range(99999) | list }}{% endfor %}',
    '{{ lipsum(n=100000, html=false, min=10000, max=100000) }}',
    '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
    "{{ '(' * 9 }}" + '{{ ' + '(' * 100_000 + '1' + ')' * 100_000 + ' }}',
    '{{ ' + '[' * 100_000 + ']' * 100_000 + ' }}',
    '{% if 1 %}' * 20_000,
    "{{ 'x' | attr('__class__') }}{{ ''.__class__.__mro__ }}",
    "{{ ''.format.__globals__ }}{{ '{0.__class__.__mro__}'.format('').__class__.__mro__ }}",
    '{{ raise_exception.__globals__.os }}',
    '{{ cycler.__init__.__globals__.os.popen("id").read() }}',
    "{{ raise_exception('x' * 900000) }}",
    '{{ 1 / 0 }}',
    'x' * (MAX_CHARACTERS + 1),
]
LASTING = [  # templates that run until the time limit
    '{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}',
    '{% for i in range(9999) %}{{ (range(99999) | sort(reverse=true) | unique | list)[:0] }}{% endfor %}',
    "{% set x = 'x ' * 400000 %}{% for i in range(99) %}{{ (x | wordwrap(1))[:0] }}{% endfor %}",
    '{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}',
]


@pytest.fixture
def renderer():
    instance = Renderer()
    yield instance
    instance.stop()


def refused(renderer: Renderer, source: str) -> str:
    with pytest.raises(RenderingError) as caught:
        renderer.render(source, {'messages': []})
    return str(caught.value)


@pytest.mark.parametrize('source', HOSTILE, ids=range(len(HOSTILE)))
def test_a_template_with_a_large_output_is_stopped(monkeypatch, source):
    monkeypatch.setattr(
        rendering, 'CPU_SECONDS', 0
    )  # the limit is the next full second, long enough to allocate
    begin = time.monotonic()
    assert len(refused(rendering.RENDERER, source)) < 2000
    assert time.monotonic() - begin < 10
    assert rendering.RENDERER.render('{{ x }}', {'x': 'as before'}) == 'as before'


@pytest.mark.parametrize('source', LASTING, ids=range(len(LASTING)))
def test_a_template_that_computes_for_too_long_is_stopped(renderer, monkeypatch, source):
    monkeypatch.setattr(rendering, 'CPU_SECONDS', 0)  # the limit is the next full second of CPU time
    assert refused(renderer, source) == 'it uses more than 0 seconds of processor time'
    monkeypatch.undo()
    assert renderer.render('{{ x }}', {'x': 'as before'}) == 'as before'


def test_a_template_that_waits_for_too_long_is_stopped(renderer, monkeypatch):
    monkeypatch.setattr(rendering, 'WALL_SECONDS', 0.2)
    assert refused(renderer, LASTING[0]) == 'it takes longer than 0 seconds'


def test_a_template_that_took_too_much_memory_is_not_retried(renderer, monkeypatch):
    monkeypatch.setattr(rendering, 'MAX_FAILURES', 1)
    source = "{{ 'x' | center(10**10) }}"
    assert refused(renderer, source) == 'it needs more than 256 MB of memory'
    assert renderer.process is None
    assert 'took too much time or memory' in refused(renderer, source)
    assert renderer.process is None


def test_a_template_that_took_too_long_is_not_retried(renderer, monkeypatch):
    """Otherwise each row of data would take as long again."""
    monkeypatch.setattr(rendering, 'CPU_SECONDS', 0)
    refused(renderer, LASTING[0])
    assert refused(renderer, LASTING[0]) == 'it took too much time or memory before'
    assert renderer.process is None


def test_one_child_serves_all_requests_and_threads(renderer):
    renderer.render('', {})
    child = renderer.process.pid
    outputs: list[str] = []

    def ask(n: int) -> None:
        for m in range(50):
            outputs.append(renderer.render('{{ n }}-{{ m }}', {'n': n, 'm': m}))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outputs) == sorted(f'{n}-{m}' for n in range(4) for m in range(50))
    assert renderer.process.pid == child


@pytest.mark.parametrize('killed', [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_child_that_was_ended_is_replaced(renderer, killed):
    renderer.render('', {})
    os.kill(renderer.process.pid, killed)
    assert renderer.render('{{ 3 }}', {}) == '3'


def test_any_text_is_rendered_unchanged(renderer):
    for text in ['', 'é😀\x00\x1b', '\ud800 alone', '{{ x }}', 'a\r\nb\u2028', 'long ' * 100_000]:
        assert renderer.render('{{ x }}', {'x': text}) == text


def test_an_extremely_long_conversation_is_refused(renderer):
    with pytest.raises(RenderingError, match='the conversation is longer than 1000000 characters'):
        renderer.render('{{ x }}', {'x': 'a' * 20_000_000})


def test_the_child_has_no_environment_no_files_and_no_terminal(renderer, tmp_path, monkeypatch):
    monkeypatch.setenv('SECRET', 'secret')
    renderer.render('', {})
    place = Path('/proc') / str(renderer.process.pid)
    if not place.exists():
        pytest.skip('no /proc')
    assert b'SECRET' not in (place / 'environ').read_bytes()
    assert os.getsid(renderer.process.pid) != os.getsid(0)
    limits = (place / 'limits').read_text()
    assert '0' in next(line for line in limits.splitlines() if line.startswith('Max file size')).split()


def script(code: str, **how) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-c', code],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **how,
    )


def is_gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if 'Z' in Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]:
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    return False


PARENT_PROGRAM = (  # a shell lets a job in the background ignore SIGINT
    'import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n'
    'from vipllava_jax.inputs.rendering import RENDERER\nRENDERER.render("", {})\n'
    'print(RENDERER.process.pid, flush=True)\n'
)


@pytest.mark.parametrize(
    'end',
    [
        '',
        'import os; os._exit(3)',
        'raise ValueError',
        'import os; os.kill(os.getpid(), 9)',
        'raise SystemExit(2)',
    ],
)
def test_the_child_ends_with_its_parent(end):
    parent = script(PARENT_PROGRAM + end)
    out, err = parent.communicate(timeout=60)
    assert 'Warning' not in err
    assert is_gone(int(out))


@pytest.mark.parametrize('source', ['""', repr(LASTING[0])])
def test_ctrl_c_ends_the_parent_and_the_child(source):
    code = PARENT_PROGRAM + f'RENDERER.render({source}, {{}})\ntime.sleep(60)'
    parent = script(code, start_new_session=True)
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    os.killpg(parent.pid, signal.SIGINT)
    _, err = parent.communicate(timeout=60)
    assert err.rstrip().endswith('KeyboardInterrupt')
    assert is_gone(child)


def test_it_works_without_a_main_module_and_without_jinja2_in_the_parent():
    code = PARENT_PROGRAM + 'import sys; print("jinja2" in sys.modules, RENDERER.render("{{ 3 }}", {}))'
    done = subprocess.run([sys.executable], cwd=ROOT, input=code, text=True, capture_output=True)
    assert done.stdout.splitlines()[1:] == ['False 3'], done.stderr


def spawned(queue) -> None:
    queue.put((rendering.RENDERER.render('{{ 3 }}', {}), rendering.RENDERER.process.pid))


def test_each_worker_process_starts_a_separate_child():
    rendering.RENDERER.render('', {})
    parents_child = rendering.RENDERER.process.pid
    context = multiprocessing.get_context('spawn')
    queue = context.SimpleQueue()
    worker = context.Process(target=spawned, args=(queue,))
    worker.start()
    text, child = queue.get()
    worker.join()
    assert (text, child != parents_child, is_gone(child)) == ('3', True, True)
    assert rendering.RENDERER.render('{{ 3 }}', {}) == '3'
    assert rendering.RENDERER.process.pid == parents_child


def test_a_fork_leaves_the_child_to_its_parent(renderer):
    code = PARENT_PROGRAM + (
        'import os\n'
        'if not (pid := os.fork()):\n'
        '    print(RENDERER.render("{{ 4 }}", {}), flush=True); os._exit(0)\n'
        'os.waitpid(pid, 0); child = RENDERER.process.pid\n'
        'print(RENDERER.render("{{ 3 }}", {}), RENDERER.process.pid == child)'
    )
    out, err = script(code).communicate(timeout=60)
    assert out.splitlines()[1:] == ['4', '3 True'], err


@pytest.mark.parametrize(
    ('name', 'value'),
    [('executable', '/nowhere/python'), ('executable', sys.executable), ('executable', '/bin/true')],
)
def test_a_child_that_does_not_start_is_an_error(renderer, monkeypatch, name, value):
    monkeypatch.setattr(sys, name, value)
    if value == sys.executable:
        monkeypatch.setattr(rendering, '_import_folders', lambda *names: [])
    assert refused(renderer, '').startswith('the process that renders it does not start: ')
