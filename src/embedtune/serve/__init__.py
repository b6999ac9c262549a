"""A server of bundles: HTTP in, one worker thread that holds the models, JSON out."""
