"""gRPC matters that both programs share."""
