"""The document of the widget for notebooks; tests/page/test_widget.py draws on it."""

import re
import sys

import pytest
from PIL import Image

from vipllava_jax.notebook import draw_widget, page_of

PICTURE = Image.new('RGB', (64, 48), 'teal')


def test_the_document_requests_nothing():
    page = page_of(PICTURE)
    assert not re.search(r'<link|<script [^>]*src|<img [^>]*src', page)
    assert page.count('</script>') == page.count('<script>') == 1  # no text of a module ends the script


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'anywidget', None)
    with pytest.raises(ModuleNotFoundError, match=r"anywidget: pip install 'vipllava-jax\[notebook\]'"):
        draw_widget(PICTURE)
