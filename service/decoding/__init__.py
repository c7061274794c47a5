"""Images are decoded in processes of their own, which can be killed and have limits: `pool.py` is the server's side."""
