"""Specs and weights of models as JSON and safetensors, never pickle; names of Wan 2.1."""
