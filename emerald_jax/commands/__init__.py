"""The commands of ``emerald-jax``: functions ``run_COMMAND(arguments) -> exit code``.

Heavy modules are imported after the arguments have been checked, so that a wrong argument is
reported before JAX is imported and before anything is allocated or written.
"""
