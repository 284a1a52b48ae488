"""Measures snapshots of a mounted volume: of one that lies still, and of one that is written to.

Never removes a volume: all are gone with the server that is measured.
"""

import time

from cloud import SERVICE
from peers import LISTEN
from tables import header, row

WRITERS = {
    "nothing writes": [],
    "64 KiB at a time, each onto the disk, without a pause": ["--write", "/data/file,sync"],
    "64 KiB at a time into memory, without a pause": ["--write", "/data/file"],
}


def snapshots(cloud, count):
    """Times the API's answer, which comes when the snapshot is whole."""
    header("Snapshot of a mounted volume of 1 GB, by the API")
    for number, (name, words) in enumerate(WRITERS.items()):
        app = f"snapshots{number}"
        image = cloud.app(app, [*words, *LISTEN])
        volume = cloud.call("POST", f"/v1/apps/{app}/volumes", {"name": "data", "size_gb": 1})["id"]
        config = {"image": image, "services": SERVICE, "guest": {"cpus": 1, "memory_mb": 256},
                  "mounts": [{"volume": volume, "path": "/data"}]}
        machine = cloud.call("POST", f"/v1/apps/{app}/machines", {"config": config})["id"]
        cloud.wait(app, machine, "started")
        taken = []
        for turn in range(count + 1):
            began = time.perf_counter()
            cloud.call("POST", f"/v1/apps/{app}/volumes/{volume}/snapshots")
            if turn > 0:
                taken.append((time.perf_counter() - began) * 1000)
        row(name, taken)
        cloud.call("DELETE", f"/v1/apps/{app}/machines/{machine}?force=true")
