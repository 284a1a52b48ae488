"""The edge and the proxies that people would put there instead, before the same upstream.

Never measures by itself: it starts each, says where it listens and which processes are its.
"""

import functools
import os
import shutil
import signal
import subprocess
import time

from cloud import SERVICE
from peers import LISTEN
from processes import children, cpu_s, find, pss_mb

APP, BY_REQUEST, RAW = "edge", "edge-requests", "edge-raw"
HOST = f"{APP}.perch.localhost"
UPSTREAM_PORT, RAW_PORT = 8080, 18090
# What an app gets that says nothing, and what lets the edge share its connections among clients as the others do.
REQUESTS = {"type": "requests", "soft_limit": 100_000}
RAW_SERVICE = [{"internal_port": UPSTREAM_PORT, "protocol": "tcp", "ports": [{"port": RAW_PORT, "handlers": []}]}]
# What nginx and haproxy need to do for a request what the edge does: the connection to the upstream is kept.
NGINX = """
worker_processes {cores}; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; user root;
worker_rlimit_nofile 65536;
events {{ worker_connections 30000; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_requests 100000000; keepalive_timeout 600s;
  upstream app {{ server {upstream}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{plain} reuseport;
    {tls}
    location / {{
      proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;
    }}
  }}
}}
"""
NGINX_TLS = "listen 127.0.0.1:{port} ssl http2 reuseport; ssl_certificate {folder}/both.pem; ssl_certificate_key {folder}/both.pem;"
HAPROXY = """
global
  nbthread {cores}
  maxconn 8000
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 60s
  timeout http-keep-alive 600s
  http-reuse always
frontend in
  option forwardfor
  bind 127.0.0.1:{plain}
  {tls}
  default_backend app
backend app
  server one {upstream} pool-max-conn 256
listen raw
  mode tcp
  bind 127.0.0.1:{raw}
  server one {upstream}
"""
HAPROXY_TLS = "bind 127.0.0.1:{port} ssl crt {folder}/both.pem alpn h2,http/1.1"
PLAIN = {"nginx": 18080, "haproxy": 18081}
TLS = {"nginx": 18443, "haproxy": 18444}
RAW_PORTS = {"perch": RAW_PORT, "haproxy": 18091}


class Proxy:
    """One proxy: its name, its ports, and the process whose tree it is."""

    def __init__(self, name, pid, plain, tls, host=HOST, alone=False):
        self.name, self.pid, self.plain, self.tls, self.host, self.alone = name, pid, plain, tls, host, alone

    @functools.cached_property
    def pids(self):
        """First asked for when it has answered: then its workers are there, and they stay."""
        return [self.pid] if self.alone else [self.pid, *children(self.pid)]

    def cpu_s(self):
        return sum(map(cpu_s, self.pids))

    def memory_kb(self):
        return sum(pss_mb(pid) for pid in self.pids) * 1024

    def url(self, path, tls=False):
        """Where a request goes; None when it does not speak TLS."""
        port = self.tls if tls else self.plain
        return port and f"http{'s' if tls else ''}://{self.host if tls else '127.0.0.1'}:{port}{path}"

    def raw_url(self, path):
        """The same where it passes connections on as they are."""
        return f"http://127.0.0.1:{RAW_PORTS[self.name]}{path}"


class Stage:
    """An app with one machine behind the edge, and nginx and haproxy before the same machine.

    A second app is the same but for its kind of concurrency: `requests`.
    """

    def __init__(self, cloud):
        self.cloud, self.started = cloud, []
        self.folder = f"{cloud.folder}/proxies"
        os.makedirs(self.folder)
        self.running(APP)
        front = find(cloud.server.pid)[0]["front"]
        self.perch = Proxy("perch", front, cloud.edge, cloud.edge_tls, alone=True)
        # Before there is another machine, whose address could be taken for it.
        self.upstream = self.find_upstream()
        self.running(BY_REQUEST, [{**SERVICE[0], "concurrency": REQUESTS}])
        self.by_request = Proxy(
            "perch, `requests`", front, cloud.edge, cloud.edge_tls, f"{BY_REQUEST}.perch.localhost", alone=True)
        self.certificate()
        try:
            others = list(self.others())
        except RuntimeError:
            self.close()
            raise
        self.proxies, self.all = [self.perch, *others], [self.perch, self.by_request, *others]
        self.hosts = f"{self.folder}/hosts"
        with open(self.hosts, "w", encoding="ascii") as hosts:
            hosts.write(f"127.0.0.1 localhost {HOST} {self.by_request.host}\n")
        self.await_answer(self.by_request, cloud.server)

    def find_upstream(self):
        """The address to which the edge itself connects, as the kernel shows it."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            subprocess.run(["curl", "-s", "-o", "/dev/null", "-H", f"Host: {HOST}", self.perch.url("/")], check=True)
            with open("/proc/net/tcp", encoding="ascii") as table:
                for line in table.readlines()[1:]:
                    address, port = line.split()[2].split(":")
                    if int(port, 16) == UPSTREAM_PORT:
                        return ".".join(str(byte) for byte in bytes.fromhex(address)[::-1]) + f":{UPSTREAM_PORT}"
        raise RuntimeError("the edge did not connect to its machine")

    def certificate(self):
        """One certificate of the kind that the edge has too: P-256."""
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}", "-days", "2",
             "-keyout", f"{self.folder}/key.pem", "-out", f"{self.folder}/chain.pem"],
            check=True, capture_output=True,
        )
        with open(f"{self.folder}/both.pem", "wb") as both:
            for part in ["chain", "key"]:
                with open(f"{self.folder}/{part}.pem", "rb") as text:
                    both.write(text.read())

    def others(self):
        """Each that is installed, started; the others are told by name."""
        for name, template, tls, words in [
            ("nginx", NGINX, NGINX_TLS, ["nginx", "-p", self.folder, "-c"]),
            ("haproxy", HAPROXY, HAPROXY_TLS, ["haproxy", "-db", "-f"]),
        ]:
            if not shutil.which(name):
                print(f"\nskipped: {name}: not installed (apt-get install {name})", flush=True)
                continue
            path = f"{self.folder}/{name}.conf"
            with open(path, "w", encoding="utf-8") as out:
                out.write(template.format(
                    cores=os.cpu_count(), folder=self.folder, upstream=self.upstream, plain=PLAIN[name],
                    raw=RAW_PORTS["haproxy"], tls=tls.format(port=TLS[name], folder=self.folder)))
            with open(f"{self.folder}/{name}.out", "wb") as log:
                process = subprocess.Popen([*words, path], stdout=log, stderr=log)
            self.started.append(process)
            proxy = Proxy(name, process.pid, PLAIN[name], TLS[name])
            self.await_answer(proxy, process)
            yield proxy

    def await_answer(self, proxy, process):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and process.poll() is None:
            if is_answered(proxy.url("/"), proxy.host):
                return
            time.sleep(0.05)
        path = f"{self.folder}/{proxy.name}.out"
        said = ""
        if os.path.exists(path):
            with open(path, encoding="utf-8") as log:
                said = log.read()
        raise RuntimeError(f"{proxy.name} did not answer: {said}")

    def by_name(self, words):
        """A command for which the app's name leads to this machine, so that TLS is asked for by it."""
        return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', self.hosts, *words]

    def raw(self):
        """Those that pass connections on as they are: the edge by an app of its own, and haproxy."""
        self.running(RAW, RAW_SERVICE)
        passing = [proxy for proxy in self.proxies if proxy.name in RAW_PORTS]
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if all(is_answered(proxy.raw_url("/"), HOST) for proxy in passing):
                return passing
            time.sleep(0.05)
        raise RuntimeError("a raw port did not answer")

    def running(self, app, services=None):
        """One more app with a machine that runs."""
        config = {"services": services or SERVICE, "image": self.cloud.app(app, LISTEN)}
        machine = self.cloud.call("POST", f"/v1/apps/{app}/machines", {"config": config})["id"]
        self.cloud.wait(app, machine, "started")
        return machine

    def close(self):
        for process in self.started:
            process.send_signal(signal.SIGTERM)
            process.wait(10)


def is_answered(url, host):
    words = ["curl", "-sf", "--max-time", "5", "-o", "/dev/null", "-H", f"Host: {host}", url]
    return subprocess.run(words, check=False).returncode == 0
