"""Questions, answers as they arrive, and what the page says when something is wrong."""

import json
import re
import subprocess
import sys
import threading

import pytest

from tests.page.driving import fill_queue
from tests.serving.fakes import FakeEngine
from tests.serving.live import live_server
from vipllava_jax.serving.options import ServerOptions

pytestmark = pytest.mark.page
BREAK = """() => {
  const text = 'data: {"choices": [{"delta": {"content": "A moon"}}]}\\n\\n';
  const start = (stream) => {
    stream.enqueue(new TextEncoder().encode(text));
    window.lose = () => stream.error(new TypeError('network error'));
  };
  const others = fetch;
  const answer = async () => new Response(new ReadableStream({ start }));
  window.fetch = (path, ...rest) => (path.startsWith('/v1/chat') ? answer() : others(path, ...rest));
}"""  # an answer whose connection can be lost


def test_it_begins_with_an_example_that_can_be_asked_about(visit):
    driver = visit()
    assert driver.page.input_value('#question') == 'What is {mark}?'
    assert driver.text('#phrases') == 'within the red rectangle'
    driver.page.click('#ask')
    driver.page.wait_for_selector('#stop', state='hidden')
    assert driver.text('.question').endswith('What is within the red rectangle?')
    assert driver.text('.answer')


def test_an_answer_streams_and_is_announced_when_complete(visit, serve):
    live = serve({'pace': 0.1, 'length': 300})
    driver = visit(live)
    driver.page.click('#ask')
    driver.page.wait_for_selector('.answer:not(:empty)')
    early = driver.text('.answer')
    live.engine.pace = 0.001
    driver.page.wait_for_selector('#stop', state='hidden')
    whole = driver.text('.answer')
    assert whole.startswith(early)
    assert len(whole) > len(early)
    assert driver.page.text_content('#announcement') == f'Answer: {whole}'


def test_an_answer_is_stopped(visit, serve):
    driver = visit(serve({'pace': 0.3, 'length': 1000}))
    driver.page.click('#ask')
    driver.page.wait_for_selector('.answer:not(:empty)')
    driver.page.click('#stop')
    driver.page.wait_for_selector('#ask')
    driver.live.wait(driver.live.is_idle)


def test_a_conversation_keeps_the_picture_and_the_phrases(visit):
    driver = visit()
    driver.ask()
    answer = driver.text('.answer')
    body = driver.ask('And its colour?')
    picture, first = body['messages'][0]['content']
    assert picture['image_url']['url'].startswith('data:image/png;base64,')
    assert first == {'type': 'text', 'text': 'What is within the red rectangle?'}
    assert [message['content'] for message in body['messages'][1:]] == [answer, 'And its colour?']
    driver.page.click('#anew')
    assert len(driver.ask()['messages']) == 1


def test_what_is_missing_before_a_question_is_told(visit):
    driver = visit()
    driver.page.click('#clear')
    for mode in ('ask', 'regions'):
        driver.choose('mode', mode)
        assert driver.text('#tip') == 'Draw a mark on the picture first.'
        assert driver.page.is_disabled('#ask')
    driver.drag([(250, 200), (280, 240)])
    assert driver.text('#ask') == 'Ask about 1 mark'
    assert driver.page.is_enabled('#ask')


def test_phrases_are_inserted_where_the_cursor_is(visit):
    driver = visit()
    driver.drag([(250, 200), (280, 240)])
    driver.page.fill('#question', 'Is near?')
    driver.page.evaluate('document.getElementById("question").setSelectionRange(2, 2)')
    driver.page.locator('#phrases button').nth(1).click()
    assert driver.page.input_value('#question') == 'Is {mark2} near?'


def test_settings_are_posted(visit):
    driver = visit()
    driver.page.click('#settings-open')
    driver.page.fill('#temperature', '0.5')
    driver.page.fill('#length', '7')
    driver.page.select_option('#template', 'hub')
    driver.page.select_option('#fit', 'pad')
    driver.page.click('#settings .strong')
    body = driver.ask()
    assert (body['temperature'], body['max_tokens'], body['template']) == (0.5, 7, 'hub')
    assert body['messages'][0]['content'][0]['fit'] == 'pad'
    assert 'the longest answer that the settings allow' in driver.text('#conversation')


def test_a_full_queue_is_told(visit, serve):
    live = serve({'rows': 1, 'queue': 1}, queue=1)
    driver = visit(live)
    clients = fill_queue(live)
    driver.page.click('#ask')
    driver.page.wait_for_selector('.error')
    assert 'its queue is full. Try again in 1 s.' in driver.text('.error')
    assert driver.page.input_value('#question') == 'What is {mark}?'
    for client in clients:
        client.close()
    live.wait(lambda: not live.server.open)
    live.engine.going.set()
    driver.page.click('article button')
    driver.page.wait_for_selector('.answer:not(:empty)')


def test_a_server_that_is_gone_is_told(visit):
    driver = visit()
    driver.page.route('**/v1/chat/completions', lambda route: route.abort())
    driver.page.route('**/ready', lambda route: route.abort())
    driver.page.click('#ask')
    driver.page.wait_for_selector('.error:has-text("The server cannot be reached. Check that it is running")')
    driver.page.wait_for_selector('body[data-phase=away]')
    assert driver.page.is_disabled('#ask')
    driver.page.unroute_all()
    driver.page.wait_for_selector('body[data-phase=ready]')
    driver.page.click('article button')
    driver.page.wait_for_selector('.answer:not(:empty)')


def test_waiting_is_visible(visit, serve):
    live = serve()
    driver = visit(live)
    live.engine.going.clear()
    driver.page.click('#ask')
    driver.page.wait_for_selector('article .note:text-matches("[Ww]aiting for .* … [1-9]")')
    live.engine.going.set()
    driver.page.wait_for_selector('.answer:not(:empty)')


def test_loading_is_visible(visit, model):
    go = threading.Event()

    def start(report):
        report('programs', 3, 7)
        go.wait(60)
        return FakeEngine(model)

    with live_server(ServerOptions('tiny', port=0), start, wait=False) as live:
        driver = visit(live, ready=False)
        driver.page.wait_for_selector('#status-text:has-text("Preparing: 3 of 7")')
        driver.page.wait_for_selector('#picture[alt="the example picture"]')
        assert driver.page.is_disabled('#ask')
        go.set()
        driver.wait_until_ready()
        driver.page.wait_for_selector('#ask:enabled')
        driver.page.goto('about:blank')


def test_a_key_is_asked_for_and_kept_for_the_session(visit, serve):
    driver = visit(serve(api_keys=('secret',)), ready=False)
    driver.page.fill('#key', 'secret')
    driver.page.click('#settings .strong')
    driver.wait_until_ready()
    driver.ask()
    assert driver.text('.answer')
    assert driver.page.evaluate('localStorage.length') == 0


def test_each_mark_gets_an_answer(visit, photo, coco):
    driver = visit()
    driver.open('photo.png', photo)
    driver.choose('mode', 'regions')
    driver.page.set_input_files('#import-file', coco)
    driver.page.wait_for_selector('#drawn > :nth-child(2)')
    driver.page.wait_for_selector('#notice:not([hidden])')
    assert 'Left out: 1 of the regions in instances.json' in driver.text('#notice-text')
    driver.page.fill('#question', 'What is {mark}?')
    with driver.page.expect_request('**/v1/regions') as asked:
        driver.page.click('#ask')
    driver.page.wait_for_selector('#stop', state='hidden')
    boxes = [region['box'] for region in asked.value.post_data_json['regions']]
    assert boxes == [[20, 40, 220, 140], [400, 200, 520, 360]]
    with driver.page.expect_download() as saved:
        driver.page.click('#export-coco')
    found = json.loads(saved.value.path().read_text())
    assert [entry['bbox'] for entry in found['annotations']] == [[20, 40, 200, 100], [400, 200, 120, 160]]
    answers = driver.page.locator('#conversation li span:last-child').all_inner_texts()
    assert [entry['caption'] for entry in found['annotations']] == answers
    assert all(answers)
    assert '…' not in answers


@pytest.mark.parametrize('mode', ['ask', 'regions'])
def test_code_that_is_copied_runs(visit, photo, tmp_path, mode):
    driver = visit()
    driver.context.grant_permissions(['clipboard-read', 'clipboard-write'])
    driver.open('photo.png', photo)
    (tmp_path / 'picture.png').write_bytes(photo)
    driver.drag([(250, 200), (280, 240)])
    driver.choose('mode', mode)
    driver.page.fill('#question', "What's 100% \\ {mark}?")
    driver.page.click('#code-open')
    for kind, command in (('curl', ['bash', '-c']), ('python', [sys.executable, '-c'])):
        driver.choose('code', kind)
        driver.page.click('#copy')
        driver.page.wait_for_selector('#copied:has-text("Copied.")')
        text = driver.page.evaluate('navigator.clipboard.readText()')
        ran = subprocess.run([*command, text], cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert ran.returncode == 0, ran.stderr
        assert re.search('finish_reason' if kind == 'curl' else r'\w', ran.stdout), ran.stdout


def test_it_works_with_a_slow_network(visit, serve):
    driver = visit(serve(), ready=False)
    rate = 50_000  # bytes per second
    conditions = {'offline': False, 'latency': 100, 'downloadThroughput': rate, 'uploadThroughput': rate}
    driver.session.send('Network.emulateNetworkConditions', conditions)
    driver.page.reload()
    driver.wait_until_ready()
    driver.ask()
    assert driver.text('.answer')


def test_a_connection_that_is_lost_is_told(visit):
    driver = visit()
    driver.page.evaluate(BREAK)
    driver.page.click('#ask')
    driver.page.wait_for_selector('.answer:not(:empty)')
    driver.page.evaluate('window.lose()')
    driver.page.wait_for_selector(
        '.error:has-text("The answer ended early: the connection was lost. Try again.")'
    )
    assert driver.text('.answer') == 'A moon'


def test_enter_that_ends_the_input_of_a_word_asks_nothing(visit):
    driver = visit()
    enter = "{ key: 'Enter', keyCode: 229, bubbles: true, cancelable: true }"  # as Safari sends it
    driver.page.evaluate(f"question.dispatchEvent(new KeyboardEvent('keydown', {enter}))")
    assert driver.page.locator('article').count() == 0
    driver.page.press('#question', 'Enter')
    driver.page.wait_for_selector('.answer:not(:empty)')


def test_what_the_page_needs_is_requested_again(visit, serve):
    driver = visit(serve(), ready=False)
    failed = []

    def fail_once(route):
        if failed:
            return route.continue_()
        failed.append(route)
        return route.abort()

    driver.page.route('**/page/about.json', fail_once)
    driver.page.reload()
    driver.wait_until_ready()
    assert failed
    assert driver.ask()['model'] == 'tiny'


def sees(*lefts):
    """Whether a request is for a preview of marks with these left edges, to ten pixels."""
    return lambda request: (
        request.url.endswith('/v1/preview')
        and lefts == tuple(round(mark['box'][0], -1) for mark in request.post_data_json['visual_prompts'])
    )


def test_each_mark_is_seen_alone_if_it_is_asked_about_alone(visit, photo):
    driver = visit()
    driver.open('photo.png', photo)
    driver.drag([(100, 80), (200, 180)])
    with driver.page.expect_request(sees(100, 300)):
        driver.drag([(300, 200), (400, 300)])
    with driver.page.expect_request(sees(100)):
        driver.choose('mode', 'regions')
    with driver.page.expect_request(sees(300)):
        driver.drag([(350, 250)])  # which selects it
