"""What the page is for those who cannot see it, and for those who would misuse it."""

import pytest

pytestmark = pytest.mark.page
THEMES = ('light', 'dark')
SERIOUS = ('serious', 'critical')


@pytest.mark.parametrize('theme', THEMES)
def test_axe_finds_nothing_serious(visit, theme):
    from axe_playwright_python.sync_playwright import Axe

    driver = visit(bypass_csp=True, color_scheme=theme)
    driver.ask()
    for opened in (None, '#settings-open', '#code-open'):
        if opened:
            driver.page.click(opened)
        found = Axe().run(driver.page).response['violations']
        serious = [(rule['id'], [node['html'] for node in rule['nodes']]) for rule in found]
        assert not [entry for entry, rule in zip(serious, found, strict=True) if rule['impact'] in SERIOUS]
        if opened:
            driver.page.keyboard.press('Escape')


@pytest.mark.parametrize('width', [390, 768, 1440])
def test_nothing_is_wider_than_the_screen(visit, width):
    driver = visit(viewport={'width': width, 'height': 800})
    driver.ask()
    driver.choose('mode', 'regions')
    assert driver.page.evaluate('document.documentElement.scrollWidth') == width


def test_the_order_of_focus_is_that_of_the_page(visit):
    driver = visit()
    driver.page.keyboard.press('Tab')
    assert driver.page.evaluate('document.activeElement.textContent') == 'Skip to the question'
    driver.page.keyboard.press('Enter')
    driver.page.keyboard.press('Tab')
    assert driver.page.evaluate('document.activeElement.closest("#composer") !== null')


def test_focus_moves_on_when_a_button_goes(visit, serve):
    live = serve()
    driver = visit(live)
    focused = 'document.activeElement.id'
    live.engine.going.clear()
    driver.page.focus('#ask')
    driver.page.keyboard.press('Enter')
    driver.page.wait_for_selector('#stop')
    assert driver.page.evaluate(focused) == 'stop'
    live.engine.going.set()
    driver.page.wait_for_selector('#stop', state='hidden')
    assert driver.page.evaluate(focused) == 'conversation'
    driver.page.focus('#clear')
    driver.page.keyboard.press('Enter')
    assert driver.page.evaluate(focused) == 'canvas'
