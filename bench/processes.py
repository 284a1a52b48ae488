"""Finds a server's processes and says what they use.

Never signals one.
"""

import os

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def find(server):
    """The processes of a perchd by their role, and every monitor."""
    roles, monitors = {"supervisor": server}, []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as line:
                words = line.read().decode(errors="replace").split("\0")
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
                parent = int(stat.read().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == server and "role" in words:
            roles[words[words.index("role") + 1]] = pid
        elif words[0].endswith("perch-monitor"):
            monitors.append(pid)
    return roles, monitors


def children(pid):
    """The processes that one has started and that run."""
    found = []
    for other in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            with open(f"/proc/{other}/stat", encoding="ascii", errors="replace") as stat:
                parent = int(stat.read().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found.append(other)
    return found


def cpu_s(pid):
    """CPU seconds of a process and of its children that have ended."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) * TICK_S


def pss_mb(pid):
    """Memory of a process, what it shares counted in parts."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) / 1024
