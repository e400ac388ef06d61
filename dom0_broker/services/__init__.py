"""gRPC services of the broker: convert, call, convert."""
