"""An origin that says what reaches it: method, target and the name that the edge gave the request."""

import http.server
import threading

TELLING = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One write for a head and a body would be two packets with a wait between them.
    wbufsize = -1
    disable_nagle_algorithm = True

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def answer(self):
        with TELLING:
            print(self.command, self.path, ",".join(self.headers.get_all("fly-request-id", ["-"])), flush=True)
        if "transfer-encoding" in self.headers:
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline() not in (b"\r\n", b"\n", b""):
                pass
        else:
            self.rfile.read(int(self.headers.get("content-length", 0)))
        body = self.path.encode("latin-1")
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256


SERVER = Server(("127.0.0.1", 0), Handler)
print("port", SERVER.server_address[1], flush=True)
SERVER.serve_forever()
