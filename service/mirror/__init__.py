"""`smn mirror`: a registry kept in step with another place, which is a registry, a server, or files in a store."""
