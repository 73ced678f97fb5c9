// Asks a server everything that a client usually wants, and prints the answers as JSON: client TARGET IMAGE...

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/grpcpp.h>
#include <nlohmann/json.hpp>

#include "cbir/v1/search.grpc.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace {

using cbir::v1::SearchRequest;
using cbir::v1::SearchResponse;
using cbir::v1::SearchService;
using cbir::v1::SearchStreamRequest;
using cbir::v1::SearchStreamResponse;
using nlohmann::json;
using std::chrono::milliseconds;

constexpr int kHits = 5;
constexpr milliseconds kTimeout{30'000};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// TLS if the environment names the authority of the server's certificate, or a plain connection.
std::shared_ptr<grpc::ChannelCredentials> transport() {
  const std::string authority = environment("CBIR_TLS_CA");
  if (authority.empty()) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = read(authority);
  return grpc::SslCredentials(options);
}

// Gives a call its deadline, and the token of the environment.
void prepare(grpc::ClientContext& context, milliseconds timeout = kTimeout) {
  context.set_deadline(std::chrono::system_clock::now() + timeout);
  const std::string token = environment("CBIR_TOKEN");
  if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
}

void check(const grpc::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.error_message());
}

SearchRequest image_query(const std::filesystem::path& path) {
  SearchRequest request;
  request.mutable_query()->set_image(read(path));
  request.mutable_options()->set_limit(kHits);
  return request;
}

// The stable name of what went wrong, for programs.
std::string reason(const google::rpc::Status& status) {
  google::rpc::ErrorInfo info;
  for (const auto& detail : status.details()) {
    if (detail.UnpackTo(&info)) return info.reason();
  }
  return "";
}

std::string code_name(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::OK:
      return "OK";
    case grpc::StatusCode::NOT_FOUND:
      return "NOT_FOUND";
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return "DEADLINE_EXCEEDED";
    default:
      return std::to_string(code);
  }
}

json check_health(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::ClientContext context;
  prepare(context);
  grpc::health::v1::HealthCheckResponse answer;
  check(grpc::health::v1::Health::NewStub(channel)->Check(&context, {}, &answer));
  return grpc::health::v1::HealthCheckResponse::ServingStatus_Name(answer.status());
}

json search_one(SearchService::Stub& stub, const std::filesystem::path& path) {
  grpc::ClientContext context;
  prepare(context);
  SearchResponse answer;
  check(stub.Search(&context, image_query(path), &answer));
  json hits = json::array();
  for (const auto& hit : answer.hits()) {
    json label = hit.has_label() ? json(hit.label()) : json(nullptr);
    hits.push_back({{"image_id", hit.image_id()}, {"label", label}, {"score", hit.score()}});
  }
  return {{"query", path.filename().string()}, {"hits", hits}};
}

// Sends all images over one call. Answers come in the order in which they are ready.
json search_many(SearchService::Stub& stub, const std::vector<std::filesystem::path>& paths) {
  std::vector<SearchStreamRequest> queries;
  for (const auto& path : paths) {
    SearchStreamRequest& query = queries.emplace_back();
    query.set_request_id(path.filename().string());
    *query.mutable_request() = image_query(path);
  }
  grpc::ClientContext context;
  prepare(context);
  auto stream = stub.SearchStream(&context);
  // The server reads no further while its window is full, so that answers must be taken while queries are sent.
  std::thread sending([&] {
    for (const auto& query : queries) {
      if (!stream->Write(query)) break;
    }
    stream->WritesDone();
  });
  json answers = json::object();
  SearchStreamResponse answer;
  while (stream->Read(&answer)) {
    json& outcome = answers[answer.request_id()];
    if (answer.has_error()) {
      outcome["reason"] = reason(answer.error());
      continue;
    }
    outcome["hits"] = json::array();
    for (const auto& hit : answer.response().hits()) outcome["hits"].push_back(hit.image_id());
  }
  sending.join();
  check(stream->Finish());
  return answers;
}

// Asks for the likes of an image that no gallery has.
json provoke_error(SearchService::Stub& stub) {
  grpc::ClientContext context;
  prepare(context);
  SearchRequest request;
  request.mutable_query()->set_image_id("no-such-image");
  SearchResponse answer;
  const grpc::Status status = stub.Search(&context, request, &answer);
  google::rpc::Status details;
  details.ParseFromString(status.error_details());
  return {{"code", code_name(status.error_code())}, {"reason", reason(details)}};
}

// Opens a stream and sends nothing until its time is up.
json pass_deadline(SearchService::Stub& stub) {
  grpc::ClientContext context;
  prepare(context, milliseconds(200));
  auto stream = stub.SearchStream(&context);
  SearchStreamResponse answer;
  stream->Read(&answer);
  return {{"code", code_name(stream->Finish().error_code())}};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: client TARGET IMAGE...\n";
    return 2;
  }
  try {
    const std::vector<std::filesystem::path> paths(argv + 2, argv + argc);
    auto channel = grpc::CreateChannel(argv[1], transport());
    auto stub = SearchService::NewStub(channel);
    const json document = {
        {"health", check_health(channel)},
        {"search", search_one(*stub, paths.front())},
        {"stream", search_many(*stub, paths)},
        {"error", provoke_error(*stub)},
        {"deadline", pass_deadline(*stub)},
    };
    std::cout << document.dump(2) << "\n";
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
