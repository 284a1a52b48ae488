"""Drives load at a proxy with wrk and h2load of Debian, and with sockets of its own.

Never goes on after an answer that was not 200, or none: a number with errors in it is none.
"""

import os
import re
import shutil
import socket
import ssl
import subprocess

from tables import percentile

NEEDS = {"wrk": "wrk", "h2load": "nghttp2-client", "curl": "curl", "openssl": "openssl"}
# As many as clients of one proxy keep under way; more than the cores can carry at once.
CONNECTIONS = 64
READ_BYTES = 65536
# How much longer than it was told a load generator may take before it is ended.
SPARE_S = 30


def missing():
    """Programs that are not installed, with the package that has each."""
    return [f"{name} (apt-get install {package})" for name, package in NEEDS.items() if not shutil.which(name)]


def by_wrk(stage, proxy, path, seconds, **settings):
    """Requests answered in a run; all of them well."""
    tls = settings.get("tls", False)
    words = ["wrk", "-t1", f"-c{settings.get('connections', CONNECTIONS)}", f"-d{seconds}s", "--timeout", "10s",
             "-H", f"Host: {proxy.host}"]
    if settings.get("fresh"):
        words += ["-H", "Connection: close"]
    if settings.get("script"):
        words += ["-s", settings["script"]]
    words.append(settings.get("url") or proxy.url(path, tls))
    told = run(stage, words, seconds)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", told)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", told)
    # What wrk calls a read error is the end of a connection, which `Connection: close` asks for.
    kinds = (1, 3, 4) if settings.get("fresh") else (1, 2, 3, 4)
    if refused or (errors and any(int(errors[kind]) for kind in kinds)):
        raise RuntimeError(f"{proxy.name}: {told}")
    return int(re.search(r"(\d+) requests in", told)[1])


def by_h2load(stage, proxy, path, seconds, **settings):
    """Requests answered in a run, and what each took in milliseconds if `log` is wanted."""
    tls, rate, clients = settings.get("tls", False), settings.get("rate"), settings.get("clients", CONNECTIONS)
    log = f"{stage.folder}/h2load.log"
    words = ["h2load", "-t1", f"-c{clients}", f"-m{settings.get('streams', 1)}", f"-D{seconds}", "-H", f":authority: {proxy.host}"]
    if settings.get("h1"):
        words.append("--h1")
    if rate:
        words += [f"--rps={rate / clients:g}", f"--log-file={log}"]
    if os.path.exists(log):
        os.unlink(log)
    words.append(proxy.url(path, tls))
    told = run(stage, words, seconds)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", told)
    codes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", told)
    # What is under way when the time is over was not refused.
    under_way = clients * settings.get("streams", 1)
    if not counts or not codes or int(counts[1]) == 0 or int(counts[2]) > under_way or int(counts[4]):
        raise RuntimeError(f"{proxy.name}: {told}")
    if any(int(codes[kind]) for kind in (2, 3, 4)):
        raise RuntimeError(f"{proxy.name}: {told}")
    took = []
    if rate:
        with open(log, encoding="ascii") as lines:
            rows = [line.split()[:3] for line in lines]
        took = [int(us) / 1000 for _, status, us in rows if status == "200"]
    return int(counts[1]), took


def run(stage, words, seconds):
    """What a load generator says at its end."""
    done = subprocess.run(
        stage.by_name(words), check=True, capture_output=True, text=True, timeout=seconds + SPARE_S)
    return done.stdout


def latency(took):
    return percentile(took, 0.5), percentile(took, 0.99)


def idle(proxy, count, tls, source="127.0.0.1"):
    """Connections that were used once and are kept."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    ask = f"GET /bytes?n=1024 HTTP/1.1\r\nHost: {proxy.host}\r\n\r\n".encode()
    kept = []
    for _ in range(count):
        port = proxy.tls if tls else proxy.plain
        stream = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))
        if tls:
            stream = context.wrap_socket(stream, server_hostname=proxy.host)
        stream.sendall(ask)
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer.split(b"\r\n\r\n", 1)[1]) < 1024:
            piece = stream.recv(READ_BYTES)
            if not piece:
                raise RuntimeError(f"{proxy.name}: a connection ended: {answer!r}")
            answer += piece
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{proxy.name}: {answer!r}")
        kept.append(stream)
    return kept
