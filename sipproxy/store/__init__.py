"""Shells around Redis or Valkey: the batching writer, slots, bindings, the embedded server."""
