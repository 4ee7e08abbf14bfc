from vipllava_jax.cli import main

main()
