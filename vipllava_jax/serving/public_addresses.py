"""Which IP addresses belong to the public internet: what the server may connect to for a stranger."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

# `is_global` depends on the version of Python, and is true for these.
NOT_PUBLIC_V4 = tuple(map(IPv4Network, ('192.0.0.0/24', '192.88.99.0/24', '224.0.0.0/3')))
# All other IPv6 networks are local, reserved, or stand for IPv4 addresses (mapped ones, NAT64).
PUBLIC_V6 = IPv6Network('2000::/3')
NOT_PUBLIC_V6 = tuple(map(IPv6Network, ('2001::/23', '2001:db8::/32', '2002::/16', '3fff::/20')))


def is_public(address: str) -> bool:
    """Whether an address is that of one host on the public internet.

    False for loopback, private, link-local, shared, multicast, reserved and documentation addresses, for IPv6
    addresses that stand for IPv4 addresses, and for what is not an address.
    """
    try:
        found = ip_address(address)
        network = ip_network(found)
    except ValueError:
        return False
    if not found.is_global or found.is_multicast or found.is_reserved:
        return False
    if isinstance(network, IPv4Network):
        return not any(network.subnet_of(other) for other in NOT_PUBLIC_V4)
    return network.subnet_of(PUBLIC_V6) and not any(network.subnet_of(other) for other in NOT_PUBLIC_V6)
