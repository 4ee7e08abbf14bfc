"""Two real processes join, exchange values, and end together."""

from tests.processes import run_processes

ADDS = """
import numpy as np
from vipllava_jax import pods
place = pods.join('on')
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import vipllava_jax.sharding as sharding
mesh = sharding.make_mesh({'data': 4})
rows = jax.sharding.NamedSharding(mesh, P('data'))
x = jax.make_array_from_callback((4,), rows, lambda at: np.arange(1.0, 5.0)[at])
total = jax.jit(jnp.sum, out_shardings=jax.sharding.NamedSharding(mesh, P()))(x)
print(pods.banner(place).split(' (')[0], float(total), pods.gather(place.index), pods.from_first(place.index))
pods.leave()
"""


def test_two_processes_add_their_parts():
    first, second = run_processes(ADDS)
    assert (first.code, first.err) == (0, '')
    assert (second.code, second.err) == (0, '')
    assert first.out == 'process 0 of 2, 2 local of 4 devices 10.0 [0, 1] 0\n'
    assert second.out == 'process 1 of 2, 2 local of 4 devices 10.0 [0, 1] 0\n'
