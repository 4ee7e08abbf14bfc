"""An engine that a program leaves open ends with it."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import atexit, threading
from types import SimpleNamespace

import jax

def running():
    print(sorted(thread.name for thread in threading.enumerate() if thread.name.startswith('vipllava')))

atexit.register(running)  # before jax ends, which has registered its own end earlier

import vipllava_jax as vj
from vipllava_jax.engine import engine

engine.Device = lambda params, cfg, shapes, image_settings: SimpleNamespace(shapes=shapes)
engine.compile_all = lambda device, progress: None
left = engine.Engine(vj.load('demo'), rows=1, long_rows=0, workers=1)
running()
"""


def test_threads_end_before_jax_does():
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, '-c', SCRIPT], cwd=root, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("['vipllava engine', 'vipllava pictures']\n[]\n", '')
