"""The shapes of other servers' APIs, one file each; asking.py is the one path that they share."""
