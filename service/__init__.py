"""The server. `app.py` builds it, and is the file to read first; the other modules are the steps of a request."""
