"""How much host memory this process may still take.

Inside a container the kernel's "available" figure is the whole machine's; the limit that kills us
is the control group's. Both are read, the smaller one counts.
"""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Bytes of RAM that can be taken without swapping or being killed by a control group.

    Returns:
        The smallest of the machine's available memory and what is left under each memory limit of
        our control group and its parents. Never negative.
    """
    left = [psutil.virtual_memory().available]
    left += [room for group in _our_groups() if (room := _room(group)) is not None]
    return max(0, min(left))


def _our_groups() -> list[Path]:
    """Folders of our memory control group and of all its parents, versions 1 and 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux, or a sandbox without /proc
        return []
    groups: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = _CGROUP_ROOT
        elif "memory" in controllers.split(","):
            root = _CGROUP_ROOT / "memory"
        else:
            continue
        here = root / path.lstrip("/")
        groups += [here, *(p for p in here.parents if p.is_relative_to(root))]
    return groups


def _room(group: Path) -> int | None:
    """Bytes left under one group's limit; None when it has none or cannot be read."""
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            allowed = int((group / limit).read_text())
            used = int((group / usage).read_text())
        except (OSError, ValueError):  # absent, unreadable, or the word "max"
            continue
        return allowed - used + _reclaimable(group)
    return None


def _reclaimable(group: Path) -> int:
    """Bytes of cached files that the kernel drops first when the group needs memory."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    facts = dict(line.split(" ", 1) for line in lines if " " in line)
    return int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))
