"""One file per command of ``emerald-jax``; each has a ``run(words) -> exit code``.

A command reads its words, calls the library and tells what came of it. Heavy modules are imported
inside ``run``, after the words have been read, so that a wrong one is answered at once, before JAX
is imported and before anything is allocated or written.
"""
