"""``python -m foveal``."""

from __future__ import annotations

from foveal.cli.app import main

if __name__ == "__main__":
    main()
