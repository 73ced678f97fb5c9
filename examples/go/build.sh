#!/bin/sh
# Generates the client from ../../protos and builds it; wants Go and protoc (the variable PROTOC names another one).
set -eu
cd "$(dirname "$0")"

GOBIN="$PWD/build" go install google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
${PROTOC:-protoc} -I ../../protos --plugin=build/protoc-gen-go --plugin=build/protoc-gen-go-grpc \
    --go_out=. --go_opt=module=ensemble-cbir --go-grpc_out=. --go-grpc_opt=module=ensemble-cbir cbir/v1/search.proto
go build -o build/client .
