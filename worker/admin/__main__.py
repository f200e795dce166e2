"""Entry point of ``python -m worker.admin`` (what the launcher runs)."""

from worker.admin.cli import main

if __name__ == "__main__":
    main()
