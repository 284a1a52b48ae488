"""Measures the registry's reads and the way from layers to an erofs file, beside the same by hand.

Never downloads anything: the image is made of this machine's own files.
"""

import base64
import gzip
import hashlib
import http.client
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import tarfile
import time

import layout
from cloud import GUEST
from processes import TICK_S, cpu_s, find
from tables import header, row

LAYER_BYTES = [120 << 20, 60 << 20, 20 << 20]
PLACES = ["/usr/bin", "/usr/sbin", "/usr/share", "/usr/lib"]


def plain_files():
    """Files and links of a Debian system, always in the same order."""
    for place in PLACES:
        for folder, folders, names in os.walk(place):
            # What Debian's packages do not put there.
            folders[:] = sorted(name for name in folders if not name.startswith("google-cloud"))
            for name in sorted(names):
                path = os.path.join(folder, name)
                if os.path.islink(path) or os.path.isfile(path):
                    yield path, os.lstat(path).st_size


def make_layers(server):
    """Three packed layers with about 200 MB in them; the first has the program too."""
    files = plain_files()
    layers = []
    for number, wanted in enumerate(LAYER_BYTES):
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as archive:
            if number == 0:
                archive.add(server, "perch-testserver")
            total = 0
            for path, size in files:
                # Larger ones would leave a layer with a handful of files.
                if size < 16 << 20:
                    archive.add(path, path.lstrip("/"), recursive=False)
                    total += size
                if total >= wanted:
                    break
        layers.append(plain.getvalue())
    return [(gzip.compress(plain, 6, mtime=0), hashlib.sha256(plain).hexdigest()) for plain in layers]


def write_layout(folder, layers, number):
    """The image with one more small layer, so that each number is an image of its own."""
    last = io.BytesIO()
    with tarfile.open(fileobj=last, mode="w") as archive:
        entry = tarfile.TarInfo("number")
        entry.size = len(str(number))
        archive.addfile(entry, io.BytesIO(str(number).encode()))
    last = last.getvalue()
    layers = [*layers, (gzip.compress(last, mtime=0), hashlib.sha256(last).hexdigest())]
    settings = {"Entrypoint": ["/perch-testserver"], "Cmd": ["--print", "first"]}
    layout.write(folder, settings, [(packed, "tar+gzip", diff_id) for packed, diff_id in layers])
    return [hashlib.sha256(packed).hexdigest() for packed, _ in layers]


def children_s():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read_all(cloud, digests):
    """Reads blobs as a client does; returns bytes and seconds."""
    shown = base64.b64encode(f"x:{cloud.token}".encode()).decode()
    connection = http.client.HTTPConnection("127.0.0.1", cloud.api, timeout=60)
    began, total = time.perf_counter(), 0
    for digest in digests:
        connection.request("GET", f"/v2/big/blobs/sha256:{digest}", None, {"Authorization": f"Basic {shown}"})
        answer = connection.getresponse()
        while part := answer.read(1 << 20):
            total += len(part)
    connection.close()
    return total, time.perf_counter() - began


def by_hand(cloud, folder):
    """skopeo, tar and mkfs.erofs, one after the other; returns the file's size."""
    subprocess.run(
        ["skopeo", "copy", "--quiet", "--src-tls-verify=false", "--src-creds", f"x:{cloud.token}",
         f"docker://127.0.0.1:{cloud.api}/big:latest", f"dir:{folder}/pulled"], check=True,
    )
    os.makedirs(f"{folder}/tree")
    with open(f"{folder}/pulled/manifest.json", encoding="utf-8") as manifest:
        layers = json.load(manifest)["layers"]
    for layer in layers:
        name = layer["digest"].removeprefix("sha256:")
        subprocess.run(["tar", "-xzpf", f"{folder}/pulled/{name}", "-C", f"{folder}/tree"], check=True)
    subprocess.run(["mkfs.erofs", "--quiet", "-zlz4", f"{folder}/out.erofs", f"{folder}/tree"], check=True)
    with open(f"{folder}/out.erofs", "rb") as file:
        os.fsync(file.fileno())
    return os.path.getsize(f"{folder}/out.erofs")


def create(cloud, config):
    began = time.perf_counter()
    machine = cloud.call("POST", "/v1/apps/big/machines", {"config": config})["id"]
    cloud.wait("big", machine, "stopped")
    took = time.perf_counter() - began
    cloud.call("DELETE", f"/v1/apps/big/machines/{machine}?force=true")
    return took


def images(cloud, count):
    layers = make_layers(f"{GUEST}/perch-testserver")
    packed_mb = sum(len(packed) for packed, _ in layers) / 1e6
    cloud.call("POST", "/v1/apps", {"name": "big", "org_slug": "personal"})
    folder = f"{cloud.folder}/layout-big"
    config = {"image": "registry.internal/big:latest", "restart": {"policy": "no"},
              "guest": {"cpus": 1, "memory_mb": 256}}
    pids, _ = find(cloud.server.pid)
    taken = {name: [] for name in [
        "push with skopeo", "cold create to its end", "warm create to its end", "by hand",
        "cold create, CPU of host and its children", "cold create, CPU of the registry's process", "by hand, CPU",
        "registry, CPU for one read of all"]}
    rates, size = [], 0
    for turn in range(count + 1):
        digests = write_layout(folder, layers, turn)
        began = time.perf_counter()
        subprocess.run(
            ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--dest-creds", f"x:{cloud.token}",
             f"oci:{folder}:latest", f"docker://127.0.0.1:{cloud.api}/big:latest"], check=True,
        )
        results = {"push with skopeo": time.perf_counter() - began}
        host, front = cpu_s(pids["host"]), cpu_s(pids["front"])
        results["cold create to its end"] = create(cloud, config)
        results["cold create, CPU of host and its children"] = cpu_s(pids["host"]) - host
        results["cold create, CPU of the registry's process"] = cpu_s(pids["front"]) - front
        results["warm create to its end"] = create(cloud, config)
        tree, cpu, began = f"{cloud.folder}/by-hand", children_s(), time.perf_counter()
        os.makedirs(tree)
        size = by_hand(cloud, tree)
        results["by hand"] = time.perf_counter() - began
        results["by hand, CPU"] = children_s() - cpu
        shutil.rmtree(tree)
        front = cpu_s(pids["front"])
        total, seconds = read_all(cloud, digests * 3)
        spent = cpu_s(pids["front"]) - front
        results["registry, CPU for one read of all"] = spent / 3
        if turn > 0:
            rates.append((total / 1e6 / max(spent, TICK_S), total / 1e6 / seconds))
            for name, value in results.items():
                # The push of the first turn alone sends all layers.
                taken[name].append(value)
        else:
            print(f"\n{packed_mb:.0f} MB packed; the first push, of all layers: {results['push with skopeo']:.1f} s")
    header("Image of about 200 MB, not on the host")
    for name, values in taken.items():
        row(name, [value * 1000 for value in values])
    header("Registry, reads on loopback")
    row("MB per CPU second of its process", [rate for rate, _ in rates], "MB/s")
    row("MB per second, one connection", [rate for _, rate in rates], "MB/s")
    cold, warm = (statistics.median(taken[f"{kind} create to its end"]) for kind in ("cold", "warm"))
    hand = statistics.median(taken["by hand"])
    print(f"\npull and unpack: {cold - warm:.2f} s, which is {(cold - warm) / hand:.2f} of by hand; erofs {size / 1e6:.0f} MB")
