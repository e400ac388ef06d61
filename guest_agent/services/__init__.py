"""gRPC services of the agent: convert, call, convert."""
