"""Measures a real perchd beside its peers, in one run, and prints medians with their spread.

Never reaches beyond the machine: `bench/run` starts it in a network namespace of its own.
"""

import os
import resource
import subprocess
import sys
import time

import calls
import edge
import fleet
import images
import machines
import volumes
from cloud import ROOT, Cloud

# Limits of requests are for clients that err; here they would be what is measured.
SETTINGS = "".join(
    f"[rates.{kind}]\nper_minute = 10000000\nburst = 1000000\n" for kind in ["read", "change", "create", "delete_app"])
PARTS = {
    "machines": lambda cloud, count: (
        machines.first_output(cloud, count or 40), machines.life(cloud, count or 40), machines.wakes(cloud, count or 200)),
    "life": lambda cloud, count: machines.life(cloud, count or 40),
    "together": lambda cloud, count: machines.together(cloud, count or 3),
    "volumes": lambda cloud, count: volumes.snapshots(cloud, count or 20),
    "memory": lambda cloud, count: fleet.memory(cloud, count or 20),
    "fleet": lambda cloud, count: fleet.memory(cloud, count or 1000),
    "calls": lambda cloud, count: calls.calls(cloud, count or 10),
    "images": lambda cloud, count: images.images(cloud, count or 5),
    "edge": lambda cloud, count: edge.edge(cloud, count or 5),
    "apps": lambda cloud, count: edge.apps(cloud, count or 5),
    "wakes": lambda cloud, count: edge.wakes(cloud, count or 10_000),
}
DEFAULT = ["machines", "together", "volumes", "memory", "calls", "journal"]


def journal():
    """Writes a second of the journal beside bare SQLite, each by one writer and by many."""
    print("\n### Journal", flush=True)
    subprocess.run([f"{ROOT}/target/release/examples/writes"], check=True)


def main():
    wanted = sys.argv[1:] or DEFAULT
    count = int(os.environ.get("BENCH_COUNT", "0"))
    for part in wanted:
        if part != "journal" and part not in PARTS:
            sys.exit(f"error: no part is called `{part}`; there are {', '.join([*PARTS, 'journal'])}")
    # Thousands of connections, here and in what is started from here.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), "?")
    print(f"{time.strftime('%Y-%m-%d')} · Linux {os.uname().release} · {os.cpu_count()} x {model}")
    if "journal" in wanted:
        journal()
    if any(part in PARTS for part in wanted):
        cloud = Cloud(fleet.SETTINGS + SETTINGS)
        try:
            for part in wanted:
                if part in PARTS:
                    PARTS[part](cloud, count)
        finally:
            cloud.close()


main()
