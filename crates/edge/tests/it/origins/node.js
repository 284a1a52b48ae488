// An origin that says what reaches it: method, target and the name that the edge gave the request.
const http = require("node:http");
const server = http.createServer((request, response) => {
  console.log(request.method, request.url, request.headers["fly-request-id"] || "-");
  request.on("data", () => {});
  request.on("end", () => {
    response.setHeader("Content-Length", Buffer.byteLength(request.url));
    response.end(request.method === "HEAD" ? undefined : request.url);
  });
});
server.keepAliveTimeout = 60000;
server.listen(0, "127.0.0.1", () => console.log("port", server.address().port));
