#!/usr/bin/env bash
# Adds ai2-olmo, whose models the converter is proven against, to a virtual environment that holds proxycast:
# bash envs/olmo.sh .venv
set -euo pipefail
python="${1:?give the folder of the virtual environment}/bin/python"
installed=$(mktemp)
trap 'rm "$installed"' EXIT
$python -m pip list --format=freeze --exclude-editable >"$installed"
# As their metadata stands, ai2-olmo holds numpy below 2, cached_path huggingface_hub below 2 and botocore
# python-dateutil below 3. They run with the ones that are here, so pip is not to report them in red, like a failure.
$python -m pip install -q --no-deps ai2-olmo==0.6.0 ai2-olmo-core==0.1.0 cached_path==1.8.10 \
    boto3==1.44.5 botocore==1.44.5 s3transfer==0.19.3 jmespath
# What importing it needs besides; nothing that is installed changes its version.
$python -m pip install -q --no-warn-conflicts --constraint "$installed" omegaconf importlib_resources datasets google-cloud-storage
$python -c 'import hf_olmo; from importlib.metadata import version; print("ai2-olmo", version("ai2-olmo"))'
