"""Where the command begins: Ctrl-C is one clean end from the first import on."""

from vipllava_jax import signals


def main() -> None:
    """Runs the command."""
    signals.end_by_default()
    from vipllava_jax import cli

    cli.main()


if __name__ == '__main__':
    main()
