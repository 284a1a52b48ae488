"""Ten busy apps with certificates of their own, before and after ten thousand others are there with theirs.

Never asks the others for anything but a handshake: they have no machine.
"""

import http.client
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time

import load
from cloud import SERVICE
from proxies import REQUESTS
from tables import header, row
from turns import RUN_S, throughput

APPS = 10_000
BUSY_APPS = 10
# Names of their own: a certificate cannot be brought for the platform's.
DOMAIN = "bench.example"
WORKERS = 8
# Of the time that the whole has, this share is for making the apps and their certificates.
MAKE_SHARE = 0.75
SIEGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "siege.py")
REQUEST = """
[req]
distinguished_name = name
x509_extensions = leaf
prompt = no
[name]
CN = ${ENV::NAME}
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:${ENV::NAME}
"""


def get(port, app):
    """Status, or it and the edge's code, and milliseconds until the first byte of an answer on a new connection."""
    began = time.perf_counter()
    edge = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    edge.request("GET", "/", None, {"Host": f"{app}.perch.localhost", "Connection": "close"})
    answer = edge.getresponse()
    took = (time.perf_counter() - began) * 1000
    text = answer.read().decode(errors="replace")
    edge.close()
    if answer.status == 200:
        return 200, took
    return " ".join([str(answer.status), *re.findall(r"\bP[A-Z]\d\d\b", text)[-1:]]), took


def certificate(name):
    """A certificate and its key: P-256, as the edge's own are."""
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-config", "/dev/stdin", "-keyout", "-", "-out", "-"],
        check=True, capture_output=True, text=True, input=REQUEST, env={**os.environ, "NAME": name},
    ).stdout
    begin = "-----BEGIN CERTIFICATE-----"
    key, chain = made.split(begin, 1)
    return begin + chain, key


def bring(stage, app):
    """Makes a certificate for one name of an app and brings it."""
    name = f"{app}.{DOMAIN}"
    chain, key = certificate(name)
    body = {"hostname": name, "fullchain": chain, "private_key": key}
    stage.cloud.call("POST", f"/v1/apps/{app}/certificates/custom", body)
    return name


def by_many(items, work, until):
    """Does the work for each, some at once; returns what came of those that were begun in time."""
    left, done, failed = queue.SimpleQueue(), [], []
    for item in items:
        left.put(item)

    def some():
        try:
            while time.monotonic() < until:
                done.append(work(left.get_nowait()))
        except queue.Empty:
            pass
        except Exception as error:  # told below
            failed.append(error)

    threads = [threading.Thread(target=some) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise RuntimeError(f"{len(failed)} of {WORKERS} workers failed, such as: {failed[0]}")
    return done


def hands(stage, names, kind="hands", seconds=RUN_S):
    """A run that shakes hands by these names, at random or by each; the edge has to show the certificate of each.

    No session is resumed, and nothing is asked.
    """
    path = f"{stage.folder}/names"

    def run(proxy):
        with open(path, "w", encoding="ascii") as out:
            out.write("\n".join(names))
        host = "checked" if proxy is stage.perch else "unchecked"
        words = [sys.executable, "-B", SIEGE, kind, str(proxy.plain), str(proxy.tls), host, str(seconds), path]
        done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=seconds + load.SPARE_S)
        return json.loads(done.stdout)

    return run


class Many:
    """Numbers of the edge with few apps, and again with many."""

    def __init__(self, stage, rounds, until, verdicts):
        self.stage, self.rounds, self.until, self.verdicts = stage, rounds, until, verdicts
        self.busy = [f"busy{number}" for number in range(BUSY_APPS)]
        self.script = f"{stage.folder}/apps.lua"
        with open(self.script, "w", encoding="ascii") as out:
            out.write("local turn = 0\nrequest = function()\n  turn = turn + 1\n"
                      f"  wrk.headers['Host'] = 'busy' .. (turn % {BUSY_APPS}) .. '.perch.localhost'\n"
                      "  return wrk.format()\nend\n")

    def requests(self, title):
        def run(proxy):
            return load.by_wrk(self.stage, proxy, "/bytes?n=1024", RUN_S, script=self.script)

        return throughput(title, self.stage.proxies, self.rounds, run, self.until)

    def handshakes(self, title, names):
        run = hands(self.stage, names)
        return throughput(title, self.stage.proxies, self.rounds, run, self.until, "handshakes a CPU s")

    def make(self, what, items, work, until):
        """Makes many of something; returns what was made, and tells time and memory."""
        before, began = self.stage.perch.memory_kb(), time.monotonic()
        made = by_many(items, work, until)
        took, grown = time.monotonic() - began, self.stage.perch.memory_kb() - before
        header(f"{len(made)} {what} made in {took:.0f} s")
        row(f"memory of the edge's process by each of {len(made)} {what}", [grown / max(len(made), 1)], "KiB")
        self.verdicts.at_least(f"{what} beside which it is measured", len(made), APPS, APPS, "")
        return made

    def all(self, count):
        for app in self.busy:
            # A client's connection goes to all of them in turn. By `connections` each has one to the machine for
            # itself, which is made anew when it asks for another app.
            self.stage.running(app, [{**SERVICE[0], "concurrency": REQUESTS}])
            # Each has answered once, so that none is woken by what is measured.
            get(self.stage.cloud.edge, app)
        few = by_many(self.busy, lambda app: bring(self.stage, app), self.until)
        requests = self.requests(f"Requests to {BUSY_APPS} apps, no others")
        handshakes = self.handshakes(f"Handshakes by {BUSY_APPS} names, no other certificates", few)
        begun = time.monotonic()
        made_by = begun + (self.until - begun) * MAKE_SHARE

        def app(number):
            name = f"other{number}"
            self.stage.cloud.call("POST", "/v1/apps", {"name": name, "org_slug": "personal"})
            return name

        apps = self.make("apps", range(count), app, made_by)
        names = self.make("certificates", apps, lambda app: bring(self.stage, app), made_by)
        beside = self.requests(f"Requests to {BUSY_APPS} apps beside {len(apps)} others")
        self.judge(f"requests beside {len(apps)} apps", requests, beside)
        self.open(names)
        beside = self.handshakes(f"Handshakes by {len(names)} names", names)
        self.judge(f"handshakes by {len(names)} names", handshakes, beside)

    def open(self, names):
        """A certificate is opened with the first handshake by its name: what that costs, once."""
        edge, seconds = self.stage.perch, max(RUN_S, self.until - time.monotonic())
        header(f"The first handshake by each of {len(names)} names")
        before = edge.cpu_s()
        count = hands(self.stage, names, "each", seconds)(edge)
        row(edge.name, [count / max(edge.cpu_s() - before, 0.01)], "handshakes a CPU s")
        self.verdicts.at_least("names that were opened", count, len(names), len(names), "")

    def judge(self, name, before, after):
        """What the edge lost, held against a neighbour that has lost nothing: 5 % are within what two runs differ."""
        for pair, ratio in after.items():
            kept = ratio / before[pair] if pair in before else None
            self.verdicts.at_least(f"{name}, of what it was before, to {pair[1]}", kept, 0.95, 0.95)
