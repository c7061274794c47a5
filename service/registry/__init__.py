"""Names -> versions -> digests -> immutable blobs, in a directory or in Redis."""
