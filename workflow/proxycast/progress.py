"""How far a study is, on a screen or in plain lines: python -m proxycast.progress config/<study>.yaml."""

from proxycast.command.main import run_alone

if __name__ == "__main__":
    run_alone("progress", "python -m proxycast.progress")
