"""Imported by the fork server before any worker starts: every worker inherits its session.

A cluster's SIGTERM and a terminal's Ctrl-C reach the complete process group, but the training
process saves first, and needs its workers until then. If it is killed, they die with it
(``workers._die_with_parent``).
"""

from __future__ import annotations

import contextlib
import os

with contextlib.suppress(OSError):  # already a leader
    os.setsid()
