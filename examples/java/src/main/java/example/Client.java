package example;

import cbir.v1.Query;
import cbir.v1.SearchOptions;
import cbir.v1.SearchRequest;
import cbir.v1.SearchResponse;
import cbir.v1.SearchServiceGrpc;
import cbir.v1.SearchStreamRequest;
import cbir.v1.SearchStreamResponse;
import com.google.gson.GsonBuilder;
import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.AbstractStub;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CompletionException;
import java.util.concurrent.TimeUnit;

/** Asks a server everything that a client usually wants, and prints the answers as JSON. */
public final class Client {
  private static final int HITS = 5;
  private static final int TIMEOUT_SECONDS = 30;

  private final SearchServiceGrpc.SearchServiceBlockingStub searching;
  private final SearchServiceGrpc.SearchServiceStub streaming;
  private final HealthGrpc.HealthBlockingStub health;

  private Client(ManagedChannel channel) {
    searching = authorized(SearchServiceGrpc.newBlockingStub(channel));
    streaming = authorized(SearchServiceGrpc.newStub(channel));
    health = authorized(HealthGrpc.newBlockingStub(channel));
  }

  public static void main(String[] arguments) throws Exception {
    if (arguments.length < 2) {
      System.err.println("usage: java -jar build/client.jar TARGET IMAGE...");
      System.exit(2);
    }
    List<Path> images = Arrays.stream(arguments).skip(1).map(Path::of).toList();
    ManagedChannel channel = Grpc.newChannelBuilder(arguments[0], transport()).build();
    try {
      Map<String, Object> document = new Client(channel).ask(images);
      System.out.println(new GsonBuilder().setPrettyPrinting().serializeNulls().create().toJson(document));
    } finally {
      channel.shutdownNow();
    }
  }

  private Map<String, Object> ask(List<Path> images) throws IOException {
    Map<String, Object> document = new LinkedHashMap<>();
    document.put("health", checkHealth());
    document.put("search", searchOne(images.get(0)));
    document.put("stream", searchMany(images));
    document.put("error", provokeError());
    document.put("deadline", passDeadline());
    return document;
  }

  /** TLS if the environment names the authority of the server's certificate, or a plain connection. */
  private static ChannelCredentials transport() throws IOException {
    String authority = System.getenv("CBIR_TLS_CA");
    if (authority == null) {
      return InsecureChannelCredentials.create();
    }
    return TlsChannelCredentials.newBuilder().trustManager(new File(authority)).build();
  }

  /** Adds the token of the environment to every call. */
  private static <S extends AbstractStub<S>> S authorized(S stub) {
    String token = System.getenv("CBIR_TOKEN");
    if (token == null) {
      return stub;
    }
    Metadata headers = new Metadata();
    headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + token);
    return stub.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers));
  }

  private String checkHealth() {
    var stub = health.withDeadlineAfter(TIMEOUT_SECONDS, TimeUnit.SECONDS);
    return stub.check(HealthCheckRequest.getDefaultInstance()).getStatus().name();
  }

  private Map<String, Object> searchOne(Path image) throws IOException {
    var stub = searching.withDeadlineAfter(TIMEOUT_SECONDS, TimeUnit.SECONDS);
    SearchResponse answer = stub.search(imageQuery(image));
    List<Map<String, Object>> hits = answer.getHitsList().stream().map(hit -> {
      Map<String, Object> entry = new LinkedHashMap<>();
      entry.put("image_id", hit.getImageId());
      entry.put("label", hit.hasLabel() ? hit.getLabel() : null);
      entry.put("score", (double) hit.getScore());
      return entry;
    }).toList();
    return Map.of("query", image.getFileName().toString(), "hits", hits);
  }

  /** Sends all images over one call. Answers come in the order in which they are ready. */
  private Map<String, Object> searchMany(List<Path> images) throws IOException {
    Map<String, Object> answers = new ConcurrentHashMap<>();
    CompletableFuture<Void> done = new CompletableFuture<>();
    var stub = streaming.withDeadlineAfter(TIMEOUT_SECONDS, TimeUnit.SECONDS);
    StreamObserver<SearchStreamRequest> queries = stub.searchStream(new StreamObserver<SearchStreamResponse>() {
      @Override
      public void onNext(SearchStreamResponse answer) {
        answers.put(answer.getRequestId(), outcome(answer));
      }

      @Override
      public void onError(Throwable failure) {
        done.completeExceptionally(failure);
      }

      @Override
      public void onCompleted() {
        done.complete(null);
      }
    });
    for (Path image : images) {
      queries.onNext(SearchStreamRequest.newBuilder()
          .setRequestId(image.getFileName().toString())
          .setRequest(imageQuery(image))
          .build());
    }
    queries.onCompleted();
    done.join();
    return answers;
  }

  private static Map<String, Object> outcome(SearchStreamResponse answer) {
    if (answer.hasError()) {
      return Map.of("reason", reason(answer.getError()));
    }
    return Map.of("hits", answer.getResponse().getHitsList().stream().map(hit -> hit.getImageId()).toList());
  }

  /** Asks for the likes of an image that no gallery has. */
  private Map<String, Object> provokeError() {
    Query query = Query.newBuilder().setImageId("no-such-image").build();
    try {
      var stub = searching.withDeadlineAfter(TIMEOUT_SECONDS, TimeUnit.SECONDS);
      stub.search(SearchRequest.newBuilder().setQuery(query).build());
      return Map.of("code", "OK", "reason", "");
    } catch (StatusRuntimeException error) {
      String code = error.getStatus().getCode().name();
      return Map.of("code", code, "reason", reason(StatusProto.fromThrowable(error)));
    }
  }

  /** Opens a stream and sends nothing until its time is up. */
  private Map<String, Object> passDeadline() {
    CompletableFuture<Void> done = new CompletableFuture<>();
    streaming.withDeadlineAfter(200, TimeUnit.MILLISECONDS).searchStream(new StreamObserver<SearchStreamResponse>() {
      @Override
      public void onNext(SearchStreamResponse answer) {}

      @Override
      public void onError(Throwable failure) {
        done.completeExceptionally(failure);
      }

      @Override
      public void onCompleted() {
        done.complete(null);
      }
    });
    try {
      done.join();
      return Map.of("code", "OK");
    } catch (CompletionException failure) {
      return Map.of("code", io.grpc.Status.fromThrowable(failure.getCause()).getCode().name());
    }
  }

  private static SearchRequest imageQuery(Path image) throws IOException {
    return SearchRequest.newBuilder()
        .setQuery(Query.newBuilder().setImage(ByteString.copyFrom(Files.readAllBytes(image))))
        .setOptions(SearchOptions.newBuilder().setLimit(HITS))
        .build();
  }

  /** The stable name of what went wrong, for programs. */
  private static String reason(com.google.rpc.Status status) {
    for (Any detail : status == null ? List.<Any>of() : status.getDetailsList()) {
      if (detail.is(ErrorInfo.class)) {
        try {
          return detail.unpack(ErrorInfo.class).getReason();
        } catch (InvalidProtocolBufferException error) {
          return "";
        }
      }
    }
    return "";
  }
}
