"""The server on Ray Serve: an ingress with the same routes decodes, replicas with an engine each embed.

`application -> ingress (routes, embedding) -> remote -> placement -> replica (local: batcher, engine)`

Imported only where it is asked for: it needs the extra `ray`.
"""
