"""TensorBoard's writer, made to outlive a full disk.

tensorboardX writes from a thread of its own. An error ends that thread, and as nobody takes events
out of its queue any more, the run would wait for ever at the next scalar. Here errors end the
events, not the thread: what is lost is drawn nowhere, and metrics.jsonl has every number anyway.
"""

from __future__ import annotations

import logging
from typing import Any

import tensorboardX

_log = logging.getLogger(__name__)


def open_tensorboard(logdir: str, purge_step: int | None) -> tensorboardX.SummaryWriter:
    """A SummaryWriter that goes on when the disk is full.

    Args:
        logdir: where its files lie.
        purge_step: points from here on are hidden, as after a resume.

    Raises:
        OSError: if it cannot even begin.
    """
    writer = tensorboardX.SummaryWriter(logdir, purge_step=purge_step, flush_secs=10)
    events = writer.file_writer.event_writer
    forgiving = _Forgiving(events._ev_writer, logdir)
    events._ev_writer = events._worker._record_writer = forgiving
    return writer


class _Forgiving:
    """Passes calls on to tensorboardX's record writer, and its disk errors to the log, once."""

    def __init__(self, inner: Any, logdir: str) -> None:
        self._inner, self._logdir, self._warned = inner, logdir, False

    def write_event(self, event: Any) -> None:
        self._try(self._inner.write_event, event)

    def flush(self) -> None:
        self._try(self._inner.flush)

    def close(self) -> None:
        self._try(self._inner.close)

    def _try(self, action: Any, *args: Any) -> None:
        try:
            action(*args)
        except (OSError, ValueError) as error:  # ValueError: closed after it failed to flush
            if not self._warned:
                _log.warning("%s cannot be written to (%s): going on", self._logdir, error)
            self._warned = True
