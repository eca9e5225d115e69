"""What a worker does with a loaded model: three separate passes (latency, memory, similarity), and the reference's own."""
