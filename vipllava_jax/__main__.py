"""Where the command begins: Ctrl-C is one clean end from the first import on."""

import _signal  # the module in C: the one in Python takes its time, in which Ctrl-C would be a traceback

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def main() -> None:
    """Runs the command."""
    from vipllava_jax import cli

    cli.main()


if __name__ == '__main__':
    main()
