"""Asking a decoder: the prompt, the likelihoods of the possible answers, locally or through an endpoint."""
