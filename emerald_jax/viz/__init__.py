"""Pictures and videos from arrays, and from what runs have written."""

import os

# imageio starts ffmpeg with a Python function between fork and exec, which beside JAX's threads may
# wait for ever; without it the process is started by the system alone.
os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")
