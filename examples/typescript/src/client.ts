/** Asks a server everything that a client usually wants, and prints the answers as JSON. */

import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { argv, env, exit, stderr, stdout } from "node:process";

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient, type Client, type Interceptor } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import { SearchRequestSchema, SearchService, SearchStreamRequestSchema } from "../build/generated/cbir/v1/search_pb.js";
import { ErrorInfoSchema } from "../build/generated/google/rpc/error_details_pb.js";
import type { Status } from "../build/generated/google/rpc/status_pb.js";
import { Health, HealthCheckResponse_ServingStatus } from "../build/generated/grpc/health/v1/health_pb.js";

const HITS = 5;
const TIMEOUT_MS = 30_000;

type Searching = Client<typeof SearchService>;

/** Plain HTTP/2, or TLS if the environment names the authority of the server's certificate. */
function transport(target: string) {
  const ca = env.CBIR_TLS_CA;
  return createGrpcTransport({
    baseUrl: `${ca ? "https" : "http"}://${target}`,
    nodeOptions: ca ? { ca: readFileSync(ca) } : {},
    interceptors: env.CBIR_TOKEN ? [authorized(env.CBIR_TOKEN)] : [],
    defaultTimeoutMs: TIMEOUT_MS,
  });
}

/** Adds a token to every call. */
function authorized(token: string): Interceptor {
  return (next) => (request) => {
    request.header.set("authorization", `Bearer ${token}`);
    return next(request);
  };
}

function imageQuery(path: string): MessageInitShape<typeof SearchRequestSchema> {
  return { query: { source: { case: "image", value: readFileSync(path) } }, options: { limit: HITS } };
}

async function searchOne(client: Searching, path: string) {
  const answer = await client.search(imageQuery(path));
  const hits = answer.hits.map(({ imageId, label, score }) => ({ image_id: imageId, label: label ?? null, score }));
  return { query: basename(path), hits };
}

/** Sends all images over one call. Answers come in the order in which they are ready. */
async function searchMany(client: Searching, paths: string[]) {
  async function* queries() {
    for (const path of paths) {
      yield create(SearchStreamRequestSchema, { requestId: basename(path), request: imageQuery(path) });
    }
  }
  const answers: Record<string, object> = {};
  for await (const { requestId, outcome } of client.searchStream(queries())) {
    if (outcome.case === "error") {
      answers[requestId] = { reason: reasonOf(outcome.value) };
    } else if (outcome.case === "response") {
      answers[requestId] = { hits: outcome.value.hits.map((hit) => hit.imageId) };
    }
  }
  return answers;
}

/** Asks for the likes of an image that no gallery has. */
async function provokeError(client: Searching) {
  try {
    await client.search({ query: { source: { case: "imageId", value: "no-such-image" } } });
    return { code: "OK", reason: "" };
  } catch (failure) {
    const error = ConnectError.from(failure);
    return { code: codeName(error.code), reason: error.findDetails(ErrorInfoSchema)[0]?.reason ?? "" };
  }
}

/** Opens a stream and sends nothing until its time is up. */
async function passDeadline(client: Searching) {
  async function* silence() {
    await new Promise((resolve) => setTimeout(resolve, 1000).unref());
  }
  try {
    for await (const _ of client.searchStream(silence(), { timeoutMs: 200 }));
    return { code: "OK" };
  } catch (failure) {
    return { code: codeName(ConnectError.from(failure).code) };
  }
}

/** The stable name of what went wrong, for programs. */
function reasonOf(status: Status): string {
  for (const detail of status.details) {
    const info = anyUnpack(detail, ErrorInfoSchema);
    if (info) {
      return info.reason;
    }
  }
  return "";
}

/** The name of a code as gRPC writes it: NOT_FOUND, where Connect has NotFound. */
function codeName(code: Code): string {
  return Code[code].replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase();
}

async function ask(target: string, paths: string[]) {
  const channel = transport(target);
  const client = createClient(SearchService, channel);
  const health = await createClient(Health, channel).check({});
  return {
    health: HealthCheckResponse_ServingStatus[health.status],
    search: await searchOne(client, paths[0]),
    stream: await searchMany(client, paths),
    error: await provokeError(client),
    deadline: await passDeadline(client),
  };
}

const [target, ...paths] = argv.slice(2);
if (target === undefined || paths.length === 0) {
  stderr.write("usage: node build/javascript/src/client.js TARGET IMAGE...\n");
  exit(2);
}
try {
  stdout.write(`${JSON.stringify(await ask(target, paths), null, 2)}\n`);
} catch (failure) {
  stderr.write(`${failure instanceof Error ? failure.message : failure}\n`);
  exit(1);
}
// Otherwise Node would wait for the idle connection.
exit(0);
