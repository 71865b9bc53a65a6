# bytes in, answers out: limits, then app, batcher, supervisor, and the worker process with the model
