"""What a study will take, told before anything runs: python -m proxycast.plan config/<study>.yaml."""

from proxycast.command.main import run_alone

if __name__ == "__main__":
    run_alone("estimate", "python -m proxycast.plan")
