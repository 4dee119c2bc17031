// A sidecar: says 200 for the canary, 204 for main. docs/how-to/sidecar.md explains it.
//
//     node sidecar.js [ADDRESS:PORT]
"use strict";

const { createHash } = require("node:crypto");
const { createServer } = require("node:http");

const PERCENT = 10; // of the users

// The rule. This is what you write.
function isForCanary(headers) {
  if (headers["x-plan"] === "beta") return true;
  if ((headers.cookie ?? "").split("; ").includes("beta=yes")) return true;
  const user = headers["x-user-id"] ?? "";
  const first = createHash("sha256").update(user, "latin1").digest().readUInt32BE(0);
  return user !== "" && first % 100 < PERCENT;
}

const options = {
  keepAliveTimeout: 60_000, // the default, 5 s, is shorter than the router's
  maxHeaderSize: 256 * 1024, // the default, 16 KiB, is less than the router lets through
};

const server = createServer(options, (request, response) => {
  request.resume(); // the body is not looked at
  // Questions are below /decide, so no client's path is this one.
  const canary = request.url === "/health" || isForCanary(request.headers);
  response.statusCode = canary ? 200 : 204;
  response.end();
});

const [, host, port] = /^(.*):(\d+)$/.exec(process.argv[2] ?? "127.0.0.1:8083");
server.listen(Number(port), host);
