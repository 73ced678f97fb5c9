// Command ensemble-cbir-example asks a server of Ensemble-CBIR everything that a client usually wants, and prints the
// answers as JSON: go run . TARGET IMAGE...
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	cbirv1 "ensemble-cbir/cbir/v1"
)

const (
	hits    = 5
	timeout = 30 * time.Second
)

type object = map[string]any

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: go run . TARGET IMAGE...")
		os.Exit(2)
	}
	document, err := ask(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	output := json.NewEncoder(os.Stdout)
	output.SetIndent("", "  ")
	_ = output.Encode(document)
}

func ask(target string, paths []string) (object, error) {
	credentials, err := transport()
	if err != nil {
		return nil, err
	}
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(credentials))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(authorized(context.Background()), timeout)
	defer cancel()
	client := cbirv1.NewSearchServiceClient(connection)

	health, err := checkHealth(ctx, connection)
	if err != nil {
		return nil, err
	}
	search, err := searchOne(ctx, client, paths[0])
	if err != nil {
		return nil, err
	}
	stream, err := searchMany(ctx, client, paths)
	if err != nil {
		return nil, err
	}
	return object{
		"health":   health,
		"search":   search,
		"stream":   stream,
		"error":    provokeError(ctx, client),
		"deadline": passDeadline(ctx, client),
	}, nil
}

// transport is TLS if the environment names the authority of the server's certificate, or a plain connection.
func transport() (credentials.TransportCredentials, error) {
	if ca := os.Getenv("CBIR_TLS_CA"); ca != "" {
		return credentials.NewClientTLSFromFile(ca, "")
	}
	return insecure.NewCredentials(), nil
}

// authorized adds the token of the environment to every call.
func authorized(ctx context.Context) context.Context {
	if token := os.Getenv("CBIR_TOKEN"); token != "" {
		return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	return ctx
}

func checkHealth(ctx context.Context, connection *grpc.ClientConn) (string, error) {
	answer, err := healthpb.NewHealthClient(connection).Check(ctx, &healthpb.HealthCheckRequest{})
	return answer.GetStatus().String(), err
}

func searchOne(ctx context.Context, client cbirv1.SearchServiceClient, path string) (object, error) {
	request, err := imageQuery(path)
	if err != nil {
		return nil, err
	}
	answer, err := client.Search(ctx, request)
	if err != nil {
		return nil, err
	}
	found := []object{}
	for _, hit := range answer.Hits {
		found = append(found, object{"image_id": hit.ImageId, "label": hit.Label, "score": float64(hit.Score)})
	}
	return object{"query": filepath.Base(path), "hits": found}, nil
}

// searchMany sends all images over one call. Answers come in the order in which they are ready.
func searchMany(ctx context.Context, client cbirv1.SearchServiceClient, paths []string) (object, error) {
	stream, err := client.SearchStream(ctx)
	if err != nil {
		return nil, err
	}
	// The server reads no further while its window is full, so that answers must be taken while queries are sent.
	sent := make(chan error, 1)
	go func() { sent <- sendAll(stream, paths) }()
	answers := object{}
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return answers, <-sent
		}
		if err != nil {
			return nil, err
		}
		if failure := answer.GetError(); failure != nil {
			answers[answer.RequestId] = object{"reason": reason(status.FromProto(failure))}
			continue
		}
		ids := []string{}
		for _, hit := range answer.GetResponse().Hits {
			ids = append(ids, hit.ImageId)
		}
		answers[answer.RequestId] = object{"hits": ids}
	}
}

func sendAll(stream cbirv1.SearchService_SearchStreamClient, paths []string) error {
	for _, path := range paths {
		request, err := imageQuery(path)
		if err != nil {
			return err
		}
		query := &cbirv1.SearchStreamRequest{RequestId: filepath.Base(path), Request: request}
		if err := stream.Send(query); err != nil {
			return err
		}
	}
	return stream.CloseSend()
}

// provokeError asks for the likes of an image that no gallery has.
func provokeError(ctx context.Context, client cbirv1.SearchServiceClient) object {
	query := &cbirv1.Query{Source: &cbirv1.Query_ImageId{ImageId: "no-such-image"}}
	_, err := client.Search(ctx, &cbirv1.SearchRequest{Query: query})
	answer := status.Convert(err)
	return object{"code": codeName(answer.Code()), "reason": reason(answer)}
}

// passDeadline opens a stream and sends nothing until its time is up.
func passDeadline(ctx context.Context, client cbirv1.SearchServiceClient) object {
	ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	stream, err := client.SearchStream(ctx)
	if err == nil {
		_, err = stream.Recv()
	}
	return object{"code": codeName(status.Code(err))}
}

func imageQuery(path string) (*cbirv1.SearchRequest, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return &cbirv1.SearchRequest{
		Query:   &cbirv1.Query{Source: &cbirv1.Query_Image{Image: data}},
		Options: &cbirv1.SearchOptions{Limit: hits},
	}, nil
}

// reason is the stable name of what went wrong, for programs.
func reason(answer *status.Status) string {
	for _, detail := range answer.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.Reason
		}
	}
	return ""
}

// codeName is the name of a code as all languages but Go write it.
func codeName(code codes.Code) string {
	switch code {
	case codes.NotFound:
		return "NOT_FOUND"
	case codes.DeadlineExceeded:
		return "DEADLINE_EXCEEDED"
	default:
		return code.String()
	}
}
