"""Imported by the fork server before any worker starts: what it does, every worker inherits.

A cluster's SIGTERM and a terminal's Ctrl-C reach the whole process group, but the training process
decides when workers end: it saves first, and they must live until then. So they form a session of
their own. Should the training process be killed instead, they die with it
(``workers._die_with_parent``).
"""

from __future__ import annotations

import contextlib
import os

with contextlib.suppress(OSError):  # already a leader
    os.setsid()
