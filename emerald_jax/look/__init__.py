"""Look at a trained agent: films, figures, the inspection page, the playable dream."""

import os

# imageio starts ffmpeg with a Python function between fork and exec, which may deadlock next to
# JAX's threads. With this setting, no Python code runs there.
os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")
