"""The entry point of the command; Ctrl-C ends it cleanly from the first import on."""

import _signal  # the C module: while Python's `signal` is imported, Ctrl-C would print a traceback

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def main() -> None:
    """Runs the command."""
    from vipllava_jax import cli

    cli.main()


if __name__ == '__main__':
    main()
