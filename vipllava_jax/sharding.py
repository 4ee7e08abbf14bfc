"""Shardings: the devices on which arrays are placed."""

import jax


def default_sharding() -> jax.sharding.SingleDeviceSharding:
    """The sharding of weights: the first local device."""
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def on_cpu() -> jax.sharding.SingleDeviceSharding:
    """The sharding of arrays that are only written to files or compared: the CPU's memory."""
    return jax.sharding.SingleDeviceSharding(jax.local_devices(backend='cpu')[0])
