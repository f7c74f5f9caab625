"""The commands of ``emerald-jax``: functions ``run_COMMAND(arguments) -> exit code``.

A command reads its arguments, calls the library and prints the result. Heavy modules are imported
after the arguments have been checked, so that a wrong argument is reported at once, before JAX is
imported and before anything is allocated or written.
"""
