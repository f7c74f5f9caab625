"""Look at a trained agent: films, figures, the inspection page, the playable dream."""

import os

# imageio starts ffmpeg with a Python function between fork and exec, which beside JAX's threads may
# deadlock; with this setting the process is started by the system alone.
os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")
