"""`python -m smn`: the command."""

from __future__ import annotations

from smn.command import main

if __name__ == "__main__":
    main()
