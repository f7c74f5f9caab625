"""Imported by the fork server before any worker starts: every worker inherits its session.

A cluster's SIGTERM and a terminal's Ctrl-C reach the complete process group. The training process
decides when workers end: it saves first, and needs them until then. So the fork server and its
workers form a session of their own. If the training process is killed instead, they die with it
(``workers._die_with_parent``).
"""

from __future__ import annotations

import contextlib
import os

with contextlib.suppress(OSError):  # already a leader
    os.setsid()
