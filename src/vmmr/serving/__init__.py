"""HTTP answers: limits -> app -> batcher -> supervisor -> worker process."""
