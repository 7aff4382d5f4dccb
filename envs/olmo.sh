#!/usr/bin/env bash
# Adds ai2-olmo to a virtual environment that holds proxycast; tests of the converter compare with its models:
# bash envs/olmo.sh .venv
set -euo pipefail
python="${1:?give the folder of the virtual environment}/bin/python"
installed=$(mktemp)
trap 'rm "$installed"' EXIT
$python -m pip list --format=freeze --exclude-editable >"$installed"
# By their metadata, ai2-olmo needs numpy < 2, cached_path huggingface_hub < 2 and botocore python-dateutil < 3. They run
# with the newer ones installed here, so --no-deps keeps pip from reporting conflicts in red, like a failure.
$python -m pip install -q --no-deps ai2-olmo==0.6.0 ai2-olmo-core==0.1.0 cached_path==1.8.10 \
    boto3==1.44.5 botocore==1.44.5 s3transfer==0.19.3 jmespath
# Other packages that its import needs. The constraint keeps the versions of installed packages.
$python -m pip install -q --no-warn-conflicts --constraint "$installed" omegaconf importlib_resources datasets google-cloud-storage
$python -c 'import hf_olmo; from importlib.metadata import version; print("ai2-olmo", version("ai2-olmo"))'
