"""How many processes the kernel has killed for want of memory, as far as the control group of this process tells."""

from __future__ import annotations

import re
from pathlib import Path


def oom_kills(root: Path = Path("/")) -> int | None:
    """The count for this process's control group and those below it, which only grows; None where there is none.

    Version 2 keeps it in memory.events, version 1 in memory.oom_control
    (https://docs.kernel.org/admin-guide/cgroup-v2.html, "oom_kill"). Below *root* is a whole file system. Blocks
    briefly.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if not controllers:
            mount, name = root / "sys/fs/cgroup", "memory.events"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.oom_control"
        else:
            continue
        # Within a container the path may be the host's, of which only the end is mounted: the mount itself.
        for folder in (mount / path.lstrip("/"), mount):
            if (count := _count_in(folder / name)) is not None:
                return count
    return None


def _count_in(file: Path) -> int | None:
    try:
        found = re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
